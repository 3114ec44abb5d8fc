# distlock: a distributed lock service inside PostgreSQL

MODULE_big = distlock
OBJS = \
	src/acquire.o \
	src/arguments.o \
	src/barrier.o \
	src/bridge.o \
	src/chores.o \
	src/control.o \
	src/database.o \
	src/deadline.o \
	src/deadlock.o \
	src/distlock.o \
	src/engine.o \
	src/extension.o \
	src/fence.o \
	src/flush.o \
	src/functions.o \
	src/image.o \
	src/images.o \
	src/lease.o \
	src/lease_table.o \
	src/memory.o \
	src/obstacle.o \
	src/protect.o \
	src/queue.o \
	src/recovery.o \
	src/request_id.o \
	src/restore.o \
	src/session.o \
	src/shmem.o \
	src/store.o \
	src/supply.o \
	src/transaction.o \
	src/views.o \
	src/wait.o \
	src/watch.o \
	src/watcher.o \
	src/worker.o
PGFILEDESC = "distlock - lock service: leases with fencing tokens"

EXTENSION = distlock
DATA = distlock--1.0.sql

REGRESS = arguments leases transactions semaphores several repeated watch bridge guard protect rights views lease_table limits
ISOLATION = setup fifo shared cancel commit undo expiry force successor semaphore several several_fair repeated watch bridge guard guard_release guard_savepoint guard_levels guard_serializable guard_shared guard_pinned guard_prepared
ISOLATION_OPTS = --inputdir=test/isolation --launcher=test/isolation/mask_tokens

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(wildcard src/*.h)
