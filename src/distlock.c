/*-------------------------------------------------------------------------
 *
 * distlock.c
 *	  Entry: the settings and hooks of distlock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/guc.h"

#include "database.h"
#include "distlock.h"
#include "fence.h"
#include "protect.h"
#include "session.h"
#include "shmem.h"
#include "transaction.h"
#include "worker.h"

PG_MODULE_MAGIC;

/* distlock.max_leases: sizes shared memory, about 1.4 kB for each. */
int			dl_max_leases = 16384;

/* distlock.default_ttl: for scope "lease" when the ttl argument is null. */
int			dl_default_ttl = 30 * 1000;

/* distlock.max_ttl: longer ones are refused. */
int			dl_max_ttl = 24 * 60 * 60;

/* distlock.durable: for scope "lease" when the durable argument is null. */
bool		dl_durable = true;

/* distlock.failover_grace: how long nothing is granted after a failover. */
int			dl_failover_grace = DL_GRACE_REPLAYED;

/* distlock.log_expirations: one LOG line for each lease that expires. */
bool		dl_log_expirations = true;

/* distlock.terminate_stale: ends sessions whose guarded transaction is stale. */
bool		dl_terminate_stale = false;

static object_access_hook_type previous_object_access = NULL;
static ProcessUtility_hook_type previous_utility = NULL;

extern PGDLLEXPORT void _PG_init(void);

static const struct config_enum_entry failover_grace_options[] = {
	{"off", DL_GRACE_OFF, false},
	{"replayed", DL_GRACE_REPLAYED, false},
	{"strict", DL_GRACE_STRICT, false},
	{NULL, 0, false}
};

static void
define_settings(void)
{
	DefineCustomIntVariable("distlock.max_leases",
							"Sets how many leases can be held and waited for at the same time, in all databases.",
							"Shared memory is taken for them at server start, about 1.4 kB for each.",
							&dl_max_leases, 16384, 16, DL_MOST_LEASES,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("distlock.default_ttl",
							"Sets the time to live of a lease acquired without one.",
							"Applies to scope \"lease\"; the other scopes have no time to live unless one is given.",
							&dl_default_ttl, 30 * 1000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("distlock.max_ttl",
							"Sets the longest time to live a lease may ask for.",
							NULL,
							&dl_max_ttl, 24 * 60 * 60, 1, DL_TTL_LONGEST / USECS_PER_SEC,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomBoolVariable("distlock.durable",
							 "Sets whether leases of scope \"lease\" outlive a crash of the server, unless the acquire says.",
							 "A durable lease is on disk, and on the synchronous standbys, before its token is returned.",
							 &dl_durable, true,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("distlock.failover_grace",
							 "Sets how long nothing is granted after a standby was promoted or a backup restored.",
							 "\"replayed\": for the longest time to live that was replayed here; "
							 "\"strict\": for distlock.max_ttl, and leases from before cannot be used; "
							 "\"off\": no longer than after any other start.",
							 &dl_failover_grace, DL_GRACE_REPLAYED, failover_grace_options,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("distlock.log_expirations",
							 "Logs each lease that expires without having been released.",
							 NULL,
							 &dl_log_expirations, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("distlock.terminate_stale",
							 "Terminates sessions whose transaction is guarded by a lease that is over.",
							 "Such a transaction cannot commit, but holds its row locks until it ends.",
							 &dl_terminate_stale, false,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("distlock");
}

/*
 * What is dropped takes its leases along, at commit.  What is truncated may be
 * protected.
 */
static void
object_access(ObjectAccessType access, Oid class, Oid object, int sub, void *arg)
{
	if (previous_object_access)
		previous_object_access(access, class, object, sub, arg);
	if (access == OAT_TRUNCATE)
		dl_protect_truncate(object);
	if (access != OAT_DROP)
		return;
	if (class == DatabaseRelationId)
	{
		dl_session_start();
		dl_txn_remove(object, InvalidOid);
	}
	else if (class == ExtensionRelationId &&
			 object == get_extension_oid("distlock", true))
	{
		dl_session_start();
		dl_txn_remove(MyDatabaseId, object);
	}
}

/* Does the statement, once done, take a snapshot from elsewhere? */
static bool
imports_snapshot(Node *statement)
{
	return IsA(statement, VariableSetStmt) &&
		castNode(VariableSetStmt, statement)->kind == VAR_SET_MULTI &&
		strcmp(castNode(VariableSetStmt, statement)->name, "TRANSACTION SNAPSHOT") == 0;
}

static bool
is_begin(Node *statement)
{
	return IsA(statement, TransactionStmt) &&
		(castNode(TransactionStmt, statement)->kind == TRANS_STMT_BEGIN ||
		 castNode(TransactionStmt, statement)->kind == TRANS_STMT_START);
}

/*
 * DISCARD ALL ends leases of session scope, as it does advisory locks.  For
 * the fence we note how old the transaction's snapshot can be.
 */
static void
process_utility(PlannedStmt *statement, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *environment, DestReceiver *dest,
				QueryCompletion *completion)
{
	Node	   *node = statement->utilityStmt;
	bool		discard_all = IsA(node, DiscardStmt) &&
		castNode(DiscardStmt, node)->target == DISCARD_ALL;

	if (previous_utility)
		previous_utility(statement, query, read_only_tree, context, params,
						 environment, dest, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context, params,
								environment, dest, completion);
	if (discard_all)
		dl_session_discard();
	else if (is_begin(node))
		dl_fence_note_begin();
	else if (imports_snapshot(node))
		dl_fence_forget_begin();
}

/*
 * Loaded in any other way than by shared_preload_libraries, or for
 * pg_upgrade, the library only answers that it must be preloaded.
 */
void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;

	define_settings();
	dl_shmem_init();
	dl_worker_register();

	previous_object_access = object_access_hook;
	object_access_hook = object_access;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
