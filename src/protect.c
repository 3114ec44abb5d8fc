/*-------------------------------------------------------------------------
 *
 * protect.c
 *	  Tables that are written only under a guard.
 *
 * A protected table has triggers whose WHEN condition calls
 * distlock_unguarded() with the parts of the lock's name: constants, and
 * columns of the row.  The condition is evaluated after each change of a row,
 * when no trigger can change that row any more, and throws unless the
 * transaction is guarded; it never comes out true, so no trigger event is
 * queued.
 *
 * PostgreSQL does the rest.  It knows which columns the condition uses, so they
 * may be renamed and not dropped; it dumps the triggers, and copies them to
 * partitions present and future.  It does not copy the trigger for TRUNCATE:
 * a hook looks after partitions.
 *
 * The name can be read back from the condition, which is the only place where
 * it is kept.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/primnodes.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "arguments.h"
#include "compat.h"
#include "extension.h"
#include "fence.h"
#include "functions.h"
#include "protect.h"

PG_FUNCTION_INFO_V1(distlock_protect);
PG_FUNCTION_INFO_V1(distlock_unprotect);
PG_FUNCTION_INFO_V1(distlock_unguarded);
PG_FUNCTION_INFO_V1(distlock_refuse_write);
PG_FUNCTION_INFO_V1(distlock_protected_name);

#define ERRCODE_DISTLOCK_UNGUARDED	MAKE_SQLSTATE('L','K','0','0','2')

#define TRIGGER_FUNCTION	"distlock_refuse_write"
#define CONDITION_FUNCTION	"distlock_unguarded"
#define INSERT_TRIGGER		"distlock_protect_insert"
#define WRITE_TRIGGER		"distlock_protect_write"

/* A part of a lock's name. */
typedef struct Part
{
	char	   *text;			/* what it says, or the name of a column */
	bool		is_column;
} Part;

/* ---- Names with columns in them ---- */

static void
refuse_template(const char *template, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid lock name \"%s\"", template),
			 errdetail("%s", detail),
			 errhint("Write {column}, or {\"column\"} as quoted in SQL, and {{ and }} for braces.")));
}

/* Reads the column between braces; *s stands behind the first one. */
static char *
parse_column(const char *template, const char **s)
{
	StringInfoData name;
	bool		quoted = **s == '"';

	initStringInfo(&name);
	if (quoted)
		(*s)++;
	for (;; (*s)++)
	{
		if (**s == '\0')
			refuse_template(template, "A brace is not closed.");
		if (!quoted && **s == '}')
			break;
		if (quoted && **s == '"')
		{
			(*s)++;
			if (**s != '"')
				break;
		}
		appendStringInfoChar(&name, **s);
	}
	if (**s != '}')
		refuse_template(template, "A quoted column is followed by something else than a closing brace.");
	(*s)++;
	return name.data;
}

static List *
add_part(List *parts, StringInfo text, bool is_column)
{
	Part	   *part = palloc(sizeof(Part));

	part->text = pstrdup(text->data);
	part->is_column = is_column;
	resetStringInfo(text);
	return lappend(parts, part);
}

static List *
parse_template(const char *template)
{
	List	   *parts = NIL;
	StringInfoData text;

	initStringInfo(&text);
	for (const char *s = template; *s != '\0';)
	{
		if (*s == '{' && s[1] != '{')
		{
			StringInfoData column;

			s++;
			initStringInfo(&column);
			appendStringInfoString(&column, parse_column(template, &s));
			if (text.len > 0)
				parts = add_part(parts, &text, false);
			parts = add_part(parts, &column, true);
			continue;
		}
		if (*s == '}' && s[1] != '}')
			refuse_template(template, "A closing brace has no opening one.");
		if (*s == '{' || *s == '}')
			s++;
		appendStringInfoChar(&text, *s++);
		if (text.len > DL_NAME_MAX)
			refuse_template(template, psprintf("A lock name has 1 to %d bytes.", DL_NAME_MAX));
	}
	if (text.len > 0)
		parts = add_part(parts, &text, false);
	if (parts == NIL)
		refuse_template(template, psprintf("A lock name has 1 to %d bytes.", DL_NAME_MAX));
	return parts;
}

static bool
has_column(List *parts)
{
	ListCell   *cell;

	foreach(cell, parts)
		if (((Part *) lfirst(cell))->is_column)
			return true;
	return false;
}

/* The inverse of parse_template(). */
static char *
template_of(List *parts)
{
	StringInfoData template;
	ListCell   *cell;

	initStringInfo(&template);
	foreach(cell, parts)
	{
		Part	   *part = lfirst(cell);
		bool		quoted = part->is_column && strpbrk(part->text, "{}\"") != NULL;

		if (part->is_column)
			appendStringInfoString(&template, quoted ? "{\"" : "{");
		for (const char *s = part->text; *s != '\0'; s++)
		{
			if (part->is_column ? *s == '"' : *s == '{' || *s == '}')
				appendStringInfoChar(&template, *s);
			appendStringInfoChar(&template, *s);
		}
		if (part->is_column)
			appendStringInfoString(&template, quoted ? "\"}" : "}");
	}
	return template.data;
}

/* Is this the function of that name of this extension? */
static bool
is_ours(Oid function, const char *our_name)
{
	char	   *name = get_func_name(function);

	return name != NULL && strcmp(name, our_name) == 0 &&
		getExtensionOfObject(ProcedureRelationId, function) ==
		get_extension_oid("distlock", true);
}

/* The parts that one call of distlock_unguarded() is given; nothing if it is none. */
static List *
parts_of_call(Oid relation, Node *node)
{
	List	   *parts = NIL;
	FuncExpr   *call;

	if (!IsA(node, FuncExpr))
		return NIL;
	call = castNode(FuncExpr, node);
	if (!is_ours(call->funcid, CONDITION_FUNCTION))
		return NIL;
	for (int i = 1; i < list_length(call->args); i++)
	{
		Node	   *argument = list_nth(call->args, i);
		Part	   *part = palloc(sizeof(Part));

		part->is_column = IsA(argument, Var) && castNode(Var, argument)->varattno > 0;
		if (part->is_column)
			part->text = get_attname(relation, castNode(Var, argument)->varattno, false);
		else if (IsA(argument, Const) && castNode(Const, argument)->consttype == TEXTOID &&
				 !castNode(Const, argument)->constisnull)
			part->text = TextDatumGetCString(castNode(Const, argument)->constvalue);
		else
			return NIL;
		parts = lappend(parts, part);
	}
	return parts;
}

/*
 * The parts of the name that a WHEN condition stands for; nothing if it is no
 * condition of ours.  Anybody may create a trigger that calls our function,
 * with a condition of any form.
 */
static List *
parts_of_condition(Oid relation, Node *condition)
{
	List	   *parts = NIL;
	List	   *calls = list_make1(condition);
	ListCell   *cell;

	if (IsA(condition, BoolExpr) && castNode(BoolExpr, condition)->boolop == OR_EXPR)
		calls = castNode(BoolExpr, condition)->args;
	foreach(cell, calls)
	{
		List	   *of_call = parts_of_call(relation, lfirst(cell));

		if (of_call == NIL ||
			(parts != NIL && strcmp(template_of(parts), template_of(of_call)) != 0))
			return NIL;
		parts = of_call;
	}
	return parts;
}

/* Likewise of a trigger; nothing if it is none of those that hold for a row. */
static List *
parts_of_trigger(Relation triggers, HeapTuple tuple)
{
	Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);
	bool		isnull;
	Datum		condition;

	condition = heap_getattr(tuple, Anum_pg_trigger_tgqual,
							 RelationGetDescr(triggers), &isnull);
	if (isnull || !TRIGGER_FOR_ROW(trigger->tgtype))
		return NIL;
	return parts_of_condition(trigger->tgrelid, stringToNode(TextDatumGetCString(condition)));
}

/* ---- Writes ---- */

/* What distlock_unguarded() keeps for a statement. */
typedef struct Call
{
	bool		constant;		/* the name is */
	bool		guarded;		/* while the generation is the same */
	uint64		generation;
	FmgrInfo	output[FLEXIBLE_ARRAY_MEMBER];	/* by argument */
} Call;

static Call *
begin_statement(FunctionCallInfo fcinfo)
{
	FmgrInfo   *flinfo = fcinfo->flinfo;
	Call	   *call;

	if (get_fn_expr_variadic(flinfo) || PG_NARGS() < 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("distlock_unguarded() is for the triggers of distlock_protect()")));
	call = MemoryContextAllocZero(flinfo->fn_mcxt, offsetof(Call, output) +
								  PG_NARGS() * sizeof(FmgrInfo));
	call->constant = true;
	for (int i = 1; i < PG_NARGS(); i++)
	{
		Oid			function;
		bool		is_varlena;

		getTypeOutputInfo(get_fn_expr_argtype(flinfo, i), &function, &is_varlena);
		fmgr_info_cxt(function, &call->output[i], flinfo->fn_mcxt);
		/* A parameter may change its value while this lives, in PL/pgSQL. */
		call->constant = call->constant && IsA(flinfo->fn_expr, FuncExpr) &&
			IsA(list_nth(castNode(FuncExpr, flinfo->fn_expr)->args, i), Const);
	}
	flinfo->fn_extra = call;
	return call;
}

static void
refuse_write(Oid relation, const char *detail)
{
	char	   *name = get_rel_name(relation);

	ereport(ERROR,
			(errcode(ERRCODE_DISTLOCK_UNGUARDED),
			 name != NULL ?
			 errmsg("unguarded write to protected table \"%s\"", name) :
			 errmsg("unguarded write to protected table with OID %u", relation),
			 errdetail_internal("%s", detail),
			 errhint("Call distlock_guard() with the token of your lease in this transaction, before the write.")));
}

static void
require_guard(Oid relation, const DlKey *key)
{
	if (!dl_fence_is_guarded(key))
		refuse_write(relation, psprintf("This transaction is not guarded by a lease of lock \"%s\".", key->name));
}

/*
 * Throws LK002 unless this transaction is guarded by a lease of the lock whose
 * name is made of the arguments; else returns false.  The first argument is the
 * protected table, for the message.
 */
Datum
distlock_unguarded(PG_FUNCTION_ARGS)
{
	Call	   *call = fcinfo->flinfo->fn_extra;
	StringInfoData name;
	DlExtension extension;
	DlKey		key;

	dl_require_library();
	if (call == NULL)
		call = begin_statement(fcinfo);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("table must not be null")));
	if (call->guarded && call->generation == dl_fence_generation())
		PG_RETURN_BOOL(false);

	initStringInfo(&name);
	for (int i = 1; i < PG_NARGS(); i++)
	{
		if (PG_ARGISNULL(i))
			refuse_write(PG_GETARG_OID(0), "The name of the row's lock contains a column that is null.");
		appendStringInfoString(&name, OutputFunctionCall(&call->output[i], PG_GETARG_DATUM(i)));
	}
	extension = dl_extension_of(fcinfo->flinfo->fn_oid);
	dl_make_key(name.data, name.len, &extension, &key);
	require_guard(PG_GETARG_OID(0), &key);
	if (call->constant)
	{
		call->guarded = true;
		call->generation = dl_fence_generation();
	}
	PG_RETURN_BOOL(false);
}

static void
refuse_truncate(Oid relation)
{
	ereport(ERROR,
			(errcode(ERRCODE_DISTLOCK_UNGUARDED),
			 errmsg("cannot truncate protected table \"%s\"", get_rel_name(relation)),
			 errdetail("Each of its rows has a lock of its own."),
			 errhint("Use DELETE under a guard for each row, or distlock_unprotect() first.")));
}

/*
 * The trigger.  For rows its WHEN condition has thrown before; it fires only
 * for a TRUNCATE of a table whose rows have locks of their own.
 */
Datum
distlock_refuse_write(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	dl_require_trigger(fcinfo, TRIGGER_FUNCTION);
	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		refuse_truncate(RelationGetRelid(trigger->tg_relation));
	refuse_write(RelationGetRelid(trigger->tg_relation), "Its trigger has lost its condition.");
	return (Datum) 0;
}

/* ---- Which tables are protected ---- */

static SysScanDesc
scan_triggers(Relation triggers, AttrNumber column, Oid index, Oid value)
{
	ScanKeyData key;

	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(value));
	return systable_beginscan(triggers, index, true, NULL, 1, &key);
}

/*
 * A table is about to be truncated.  If it is a partition, PostgreSQL has not
 * given it the trigger that stands guard over the whole.  Throws LK002.
 */
void
dl_protect_truncate(Oid relation)
{
	Relation	triggers;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *parts = NIL;
	Oid			function = InvalidOid;

	if (!get_rel_relispartition(relation))
		return;
	triggers = table_open(TriggerRelationId, AccessShareLock);
	scan = scan_triggers(triggers, Anum_pg_trigger_tgrelid, TriggerRelidNameIndexId, relation);
	while (parts == NIL && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);

		if (OidIsValid(trigger->tgparentid) && is_ours(trigger->tgfoid, TRIGGER_FUNCTION))
		{
			function = trigger->tgfoid;
			parts = parts_of_trigger(triggers, tuple);
		}
	}
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);

	if (has_column(parts))
		refuse_truncate(relation);
	else if (parts != NIL)
	{
		DlExtension extension = dl_extension_of(function);
		const char *name = ((Part *) linitial(parts))->text;
		DlKey		key;

		dl_require_library();
		dl_make_key(name, strlen(name), &extension, &key);
		require_guard(relation, &key);
	}
}

/*
 * The lock name that a protecting trigger stands for, with its columns as they
 * are called now; null for any other trigger.
 */
Datum
distlock_protected_name(PG_FUNCTION_ARGS)
{
	Relation	triggers;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *parts = NIL;

	dl_require_library();
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	triggers = table_open(TriggerRelationId, AccessShareLock);
	scan = scan_triggers(triggers, Anum_pg_trigger_oid, TriggerOidIndexId, PG_GETARG_OID(0));
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple) && is_ours(((Form_pg_trigger) GETSTRUCT(tuple))->tgfoid, TRIGGER_FUNCTION))
		parts = parts_of_trigger(triggers, tuple);
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);
	if (parts == NIL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(template_of(parts)));
}

/* ---- Protecting and unprotecting ---- */

/*
 * Lock a table that the current role owns against writes.  Its triggers are
 * about to change.
 */
static Oid
lock_table(FunctionCallInfo fcinfo, const char *function)
{
	Oid			relation;
	char		relkind;

	dl_require_library();
	PreventCommandDuringRecovery(function);
	PreventCommandIfParallelMode(function);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("table must not be null")));
	relation = PG_GETARG_OID(0);
	for (bool locked = false;; locked = true)
	{
		/* Not before we know that it is ours, and again since we know. */
		relkind = get_rel_relkind(relation);
		if (relkind == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_TABLE),
					 errmsg("relation with OID %u does not exist", relation)));
		if (!dl_owns_relation(relation, GetUserId()))
			aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(relkind),
						   get_rel_name(relation));
		if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("\"%s\" is not a table", get_rel_name(relation)),
					 errdetail("Only tables and partitioned tables can be protected.")));
		if (locked)
			return relation;
		LockRelationOid(relation, ShareRowExclusiveLock);
	}
}

static void
execute(const char *command)
{
	if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not execute \"%s\"", command)));
}

static char *
qualified_name(Oid relation)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relation)),
									  get_rel_name(relation));
}

/* distlock_unguarded(...) on these parts, of the old or the new row. */
static char *
condition_of(Oid relation, List *parts, const char *schema, const char *row)
{
	StringInfoData call;
	ListCell   *cell;

	initStringInfo(&call);
	appendStringInfo(&call, "%s.distlock_unguarded(%s::pg_catalog.regclass",
					 schema, quote_literal_cstr(qualified_name(relation)));
	foreach(cell, parts)
	{
		Part	   *part = lfirst(cell);

		if (part->is_column)
			appendStringInfo(&call, ", %s.%s", row, quote_identifier(part->text));
		else
			appendStringInfo(&call, ", %s::pg_catalog.text", quote_literal_cstr(part->text));
	}
	appendStringInfoChar(&call, ')');
	return call.data;
}

/* Also fires in a session that replicates, as nothing else keeps a row out. */
static void
create_trigger(Oid relation, const char *schema, const char *name,
			   const char *when, const char *condition)
{
	char	   *table = qualified_name(relation);

	execute(psprintf("CREATE TRIGGER %s %s ON %s FOR EACH %s %s EXECUTE FUNCTION %s." TRIGGER_FUNCTION "()",
					 name, when, table,
					 strstr(when, "TRUNCATE") ? "STATEMENT" : "ROW",
					 condition ? psprintf("WHEN (%s)", condition) : "", schema));
	execute(psprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s", table, name));
}

/*
 * The names of the table's protecting triggers: of its own, or of those that it
 * has as a partition.
 */
static List *
protecting_triggers(Oid relation, bool as_partition)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	SysScanDesc scan = scan_triggers(triggers, Anum_pg_trigger_tgrelid,
									 TriggerRelidNameIndexId, relation);
	HeapTuple	tuple;
	List	   *names = NIL;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);

		if (OidIsValid(trigger->tgparentid) == as_partition &&
			is_ours(trigger->tgfoid, TRIGGER_FUNCTION))
			names = lappend(names, pstrdup(NameStr(trigger->tgname)));
	}
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);
	return names;
}

/*
 * Does a value of this type print alike in every session?  If not, two sessions
 * could each hold "the" lock of one row.  Strings do, and a few others; labels
 * of an enum may change, but for all.  That an output function is said to be
 * immutable is not enough: extra_float_digits and others are not considered.
 */
static bool
prints_alike(Oid type)
{
	char		category;
	bool		preferred;

	type = getBaseType(type);
	get_type_category_preferred(type, &category, &preferred);
	switch (type)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case OIDOID:
		case BOOLOID:
		case CHAROID:
		case UUIDOID:
		case INETOID:
		case CIDROID:
		case MACADDROID:
		case MACADDR8OID:
		case BITOID:
		case VARBITOID:
			return true;
		default:
			return category == TYPCATEGORY_STRING || category == TYPCATEGORY_ENUM;
	}
}

/* Throws unless the name of a lock can contain this column. */
static void
check_column(Oid relation, const char *column)
{
	AttrNumber	number = get_attnum(relation, column);
	Oid			type;

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist",
						column, get_rel_name(relation)),
				 errhint("Write the column as it is stored; unquoted names are not folded to lower case.")));
	type = get_atttype(relation, number);
	if (!prints_alike(type))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("column \"%s\" of relation \"%s\" cannot be part of a lock name",
						column, get_rel_name(relation)),
				 errdetail("How a value of type %s prints may depend on the settings of the session.",
						   format_type_be(type)),
				 errhint("Use a column of another type, such as a generated one.")));
}

/*
 * Do the conditions of the triggers call our function?  A function of the same
 * name that fits the arguments better would have been taken in its place.
 */
static void
check_conditions(Oid relation, const char *template)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	SysScanDesc scan;
	HeapTuple	tuple;

	CommandCounterIncrement();
	scan = scan_triggers(triggers, Anum_pg_trigger_tgrelid, TriggerRelidNameIndexId, relation);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);
		List	   *parts;

		if (OidIsValid(trigger->tgparentid) || !TRIGGER_FOR_ROW(trigger->tgtype) ||
			!is_ours(trigger->tgfoid, TRIGGER_FUNCTION))
			continue;
		parts = parts_of_trigger(triggers, tuple);
		if (parts == NIL || strcmp(template_of(parts), template) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_AMBIGUOUS_FUNCTION),
					 errmsg("function " CONDITION_FUNCTION "() is not unique"),
					 errdetail("Another function of that name would be called in its place."),
					 errhint("Drop it, and see who may create functions in the schema of the extension.")));
	}
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);
}

/* The table is written only by transactions guarded on the lock of that name. */
Datum
distlock_protect(PG_FUNCTION_ARGS)
{
	Oid			relation = lock_table(fcinfo, "distlock_protect()");
	const char *schema;
	List	   *parts;
	ListCell   *cell;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("lock name must not be null")));
	parts = parse_template(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	foreach(cell, parts)
	{
		Part	   *part = lfirst(cell);

		if (part->is_column)
			check_column(relation, part->text);
	}
	foreach(cell, protecting_triggers(relation, true))
		if (strcmp(lfirst(cell), has_column(parts) ? INSERT_TRIGGER : WRITE_TRIGGER) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("table \"%s\" is already protected as a partition", get_rel_name(relation)),
					 errdetail("A partition can have a protection of its own if the name of one lock has columns in it and that of the other has not.")));
	if (protecting_triggers(relation, false) != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("table \"%s\" is already protected", get_rel_name(relation)),
				 errhint("Call distlock_unprotect() first.")));

	schema = quote_identifier(get_namespace_name(get_func_namespace(fcinfo->flinfo->fn_oid)));
	SPI_connect();
	if (has_column(parts))
	{
		char	   *old_row = condition_of(relation, parts, schema, "OLD");
		char	   *new_row = condition_of(relation, parts, schema, "NEW");

		create_trigger(relation, schema, INSERT_TRIGGER, "AFTER INSERT", new_row);
		create_trigger(relation, schema, "distlock_protect_update", "AFTER UPDATE",
					   psprintf("%s OR %s", old_row, new_row));
		create_trigger(relation, schema, "distlock_protect_delete", "AFTER DELETE", old_row);
		create_trigger(relation, schema, "distlock_protect_truncate", "BEFORE TRUNCATE", NULL);
	}
	else
	{
		char	   *condition = condition_of(relation, parts, schema, NULL);

		create_trigger(relation, schema, WRITE_TRIGGER,
					   "AFTER INSERT OR UPDATE OR DELETE", condition);
		create_trigger(relation, schema, "distlock_protect_truncate", "BEFORE TRUNCATE", condition);
	}
	SPI_finish();
	check_conditions(relation, template_of(parts));
	if (get_rel_relkind(relation) == RELKIND_RELATION && has_subclass(relation))
		ereport(NOTICE,
				(errmsg("tables that inherit from \"%s\" are not protected", get_rel_name(relation)),
				 errhint("Protect each of them that needs it.")));
	PG_RETURN_VOID();
}

/* The table is written as any other again. */
Datum
distlock_unprotect(PG_FUNCTION_ARGS)
{
	Oid			relation = lock_table(fcinfo, "distlock_unprotect()");
	List	   *names = protecting_triggers(relation, false);
	ListCell   *cell;

	if (names == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is not protected by itself", get_rel_name(relation)),
				 errhint("The view distlock_protected shows the tables that are.")));
	SPI_connect();
	foreach(cell, names)
		execute(psprintf("DROP TRIGGER %s ON %s", quote_identifier(lfirst(cell)),
						 qualified_name(relation)));
	SPI_finish();
	PG_RETURN_VOID();
}
