"""Lock holders that are paused until their lease is over.

usage: paused_holders.py [--minutes N] [--seed S]

Client processes add elements to a set, a row that they read, change and write
back under a lock.  Now and then some of them are stopped (SIGSTOP) for longer
than the time to live of their lease, and go on where they were.  A client
notes each element whose COMMIT has returned; those that are not in the set at
the end are lost updates.  Without a guard there have to be some, with a guard
none.

Connects by the environment (PGHOST, PGPORT, PGUSER, PGDATABASE) as superuser
to a throwaway server with the extension, run by the same system user.
./paused_holders starts one; t/013_paused_holders.pl does, too.

Without --minutes, a short form: leases of 200 ms, and each way to pause holders
until it has shown something.  With it, leases of 2 s and N minutes in all.
The seed makes the pauses the same, but not what they hit.
"""

import argparse
import collections
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.types.json import Json

SETS = 6  # worked on at the same time, each under its own lock
CLIENTS = 24
FULL = 1000  # elements in a set; its clients turn to a new one then
MOST_WORK = 0.01  # s that a client works on a set, where most pauses hit it
# s that it rests before the next.  If somebody were at work on a set all the
# time, he would write back from memory what a stale write has just erased.
MOST_REST = 0.06
GUARDED_UPDATES = 2000  # acknowledged ones that show that none is lost
PATIENCE = 180  # s after which a way to pause holders has to have shown something

Form = collections.namedtuple("Form", "name guarded backends terminate")
FORMS = [
    Form("unfenced", False, False, False),
    Form("guarded", True, False, False),
    Form("guarded, server processes paused", True, True, False),
    Form("guarded, terminate_stale", True, False, True),
]


def value(conn, query, *args):
    """The first column of the first row, or None."""
    row = conn.execute(query, args).fetchone()
    return row and row[0]


# ---- Clients ----


class Client:
    """Runs in a process of its own, and tells of itself in a file only."""

    def __init__(self, form, number, seed, ttl, log):
        self.form = form
        self.number = number
        self.random = random.Random(f"{seed} {form.name} {number}")
        self.ttl = f"{ttl} s"
        self.log = open(log, "w", buffering=1)
        self.set_id = number % SETS
        self.stopping = False

    def run(self):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.stop)
        conn = None
        nelements = 0
        while not self.stopping:
            if conn is None or conn.closed:
                conn = psycopg.connect(autocommit=True, application_name=self.number)
                self.note("connected", conn.info.backend_pid)
            nelements += 1
            try:
                self.add(conn, f"{self.number}.{nelements}")
                self.spend(MOST_REST)
            except psycopg.OperationalError:
                if not (self.form.terminate and conn.closed):
                    raise
                self.note("terminated", "")

    def stop(self, *_):
        self.stopping = True

    def note(self, what, which):
        print(what, which, file=self.log)

    def spend(self, most):
        time.sleep(self.random.uniform(0, most))

    def add(self, conn, element):
        lock = f"set {self.set_id}"
        token = value(conn, "SELECT distlock_acquire(%s, ttl => %s)", lock, self.ttl)
        elements = (
            value(conn, "SELECT elements FROM sets WHERE id = %s", self.set_id) or []
        )
        if len(elements) < FULL:
            self.spend(MOST_WORK)
            self.note(self.write(conn, lock, token, elements, element), element)
        else:
            self.set_id += SETS
        value(conn, "SELECT distlock_release(%s, %s)", lock, token)

    def write(self, conn, lock, token, elements, element):
        """Write the set back with the element; returns what became of it."""
        try:
            conn.execute("BEGIN")
            if self.form.guarded:
                conn.execute("SELECT distlock_guard(%s, %s)", (lock, token))
            self.spend(MOST_WORK / 4)
            conn.execute(
                "INSERT INTO sets VALUES (%s, %s)"
                " ON CONFLICT (id) DO UPDATE SET elements = excluded.elements",
                (self.set_id, Json(elements + [element])),
            )
            # The row is locked, so these are in the order of the commits.
            conn.execute(
                "INSERT INTO writes (set_id, token) VALUES (%s, %s)",
                (self.set_id, token),
            )
            self.spend(MOST_WORK / 4)
            conn.execute("COMMIT")
        except psycopg.Error as error:
            if error.sqlstate != "LK001":
                raise
            if conn.info.transaction_status == TransactionStatus.IDLE:
                return "refused-at-commit"
            conn.execute("ROLLBACK")
            return "refused-at-guard"
        return "acknowledged"


# ---- Pauses ----


@contextlib.contextmanager
def stopped(pids, rng):
    """Stop the processes, and let them go on in any order."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in rng.sample(pids, len(pids)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def choose(conn, rng):
    """Some of the clients that hold a lock just now, and any one."""
    leases = conn.execute("SELECT holder FROM distlock_leases").fetchall()
    some = rng.sample(leases, rng.randint(0, len(leases)))
    return {rng.randrange(CLIENTS), *(int(holder) for (holder,) in some)}


def notes(log):
    """What a client has told so far: pairs of what and which."""
    with open(log) as file:
        # The last line may be incomplete.
        return [line[:-1].split(" ", 1) for line in file if line.endswith("\n")]


def processes(process, log, form, rng):
    """The processes to stop for one client: itself, its server process, or both."""
    if not form.backends:
        return [process.pid]
    backend = [int(which) for what, which in notes(log) if what == "connected"][-1:]
    return rng.choice([[process.pid], backend, [process.pid] + backend])


@contextlib.contextmanager
def running(form, seed, ttl, logs):
    """Run a client for each log; lets them finish their work at the end.

    Nothing is left of them, whatever happens.
    """
    # Not forkserver, which newer Pythons prefer: these are to be our children.
    fork = multiprocessing.get_context("fork")
    children = []
    try:
        for number, log in enumerate(logs):
            client = Client(form, number, seed, ttl, log)
            children.append(fork.Process(target=client.run))
            children[-1].start()
        yield children
        for child in children:
            child.terminate()
        for child in children:
            child.join(PATIENCE)
            expect_exit(child, 0)
    finally:
        # A second Ctrl-C must not cut this short.
        signals = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        for child in children:
            child.kill()
            child.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def expect_exit(child, *expected):
    if child.exitcode not in expected:
        raise RuntimeError(f"the exit code of a client is {child.exitcode}")


# ---- Judgement ----


class Figures:
    """What has become of the updates, by the notes of the clients."""

    def __init__(self, conn, logs, pauses):
        noted = collections.defaultdict(set)
        self.terminated = 0
        for log in logs:
            for what, which in notes(log):
                noted[what].add(which)
                self.terminated += what == "terminated"
        found = collections.Counter()
        for (elements,) in conn.execute("SELECT elements FROM sets"):
            found.update(elements)
        refused = noted["refused-at-guard"] | noted["refused-at-commit"]
        self.acknowledged = len(noted["acknowledged"])
        self.refused = len(refused)
        self.refused_at_commit = len(noted["refused-at-commit"])
        self.pauses = pauses
        self.lost = len(noted["acknowledged"] - found.keys())
        self.written_anyway = len(refused & found.keys())
        self.twice = sum(count > 1 for count in found.values())
        self.backward = value(
            conn,
            "SELECT count(*) FROM (SELECT token <= lag(token)"
            " OVER (PARTITION BY set_id ORDER BY n) AS backward FROM writes) w"
            " WHERE backward",
        )

    def __str__(self):
        percent = 100 * self.lost / max(self.acknowledged, 1)
        return (
            f"{self.acknowledged} acknowledged, {self.lost} lost ({percent:.1f} %),"
            f" {self.refused} refused ({self.refused_at_commit} at commit),"
            f" {self.terminated} terminated, {self.backward} tokens out of order,"
            f" {self.pauses} pauses"
        )

    def missing(self, form):
        """What has not been shown yet, and may be if we go on."""
        if not form.guarded:
            return [] if self.lost else ["no update was lost without a guard"]
        found = []
        if self.acknowledged < GUARDED_UPDATES and form.name == "guarded":
            found.append(f"fewer than {GUARDED_UPDATES} updates were acknowledged")
        if not self.refused:
            found.append("nothing was refused")
        if form.terminate and not self.terminated:
            found.append("no session was terminated")
        return found

    def wrong(self, form):
        """What must not be."""
        found = []
        if form.guarded and self.lost:
            found.append(f"{self.lost} acknowledged updates were lost")
        if form.guarded and self.backward:
            found.append(f"{self.backward} writes came after one with a greater token")
        if self.written_anyway:
            found.append(f"{self.written_anyway} refused updates were written")
        if self.twice:
            found.append(f"{self.twice} elements are in the set twice")
        return found


def experiment(conn, form, seed, ttl, seconds, directory):
    rng = random.Random(f"{seed} {form.name}")
    logs = [f"{directory}/{number}" for number in range(CLIENTS)]
    start = time.monotonic()
    pauses = 0

    conn.execute("TRUNCATE sets, writes")
    conn.execute(f"ALTER SYSTEM SET distlock.terminate_stale = {form.terminate}")
    conn.execute("SELECT pg_reload_conf()")
    with running(form, seed, ttl, logs) as children:
        while True:
            time.sleep(rng.uniform(0.3, 1.5) * ttl)
            # Query while nothing is stopped: a server process may hold LWLocks.
            spent = time.monotonic() - start
            if spent > seconds + PATIENCE or (
                spent > seconds and not Figures(conn, logs, pauses).missing(form)
            ):
                break
            for child in children:
                expect_exit(child, None)
            victims = choose(conn, rng)
            pids = [
                pid
                for victim in victims
                for pid in processes(children[victim], logs[victim], form, rng)
            ]
            with stopped(pids, rng):
                time.sleep(rng.uniform(1.5, 5) * ttl)
            pauses += len(victims)
    return Figures(conn, logs, pauses)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    options = parser.parse_args()
    ttl, seconds = 0.2, 6
    if options.minutes is not None:
        ttl, seconds = 2, 60 * options.minutes / len(FORMS)
    ok = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    conn = psycopg.connect(autocommit=True)
    conn.execute("CREATE TABLE sets (id integer PRIMARY KEY, elements json)")
    conn.execute(
        "CREATE TABLE writes (n bigint GENERATED ALWAYS AS IDENTITY,"
        " set_id integer, token bigint)"
    )
    print(
        f"seed {options.seed}, {CLIENTS} clients of {SETS} sets, TTL {ttl} s",
        flush=True,
    )
    for form in FORMS:
        with tempfile.TemporaryDirectory() as directory:
            figures = experiment(conn, form, options.seed, ttl, seconds, directory)
        print(f"{form.name}: {figures}", flush=True)
        for complaint in figures.wrong(form) + figures.missing(form):
            print(f"not as it should be: {complaint}", flush=True)
            ok = False
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
