/*-------------------------------------------------------------------------
 *
 * arguments.h
 *	  From SQL arguments to what the engine takes.
 *
 * Each function throws 22004 or 22023 for a value it does not accept, and
 * names the argument.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_ARGUMENTS_H
#define DISTLOCK_ARGUMENTS_H

#include "fmgr.h"

#include "engine.h"
#include "extension.h"

extern void dl_make_key(const char *name, int len, const DlExtension *extension,
						DlKey *key);
extern uint32 dl_request_id_hash(const char *request_id, Oid owner,
								 const DlKey *key);
extern void dl_arg_key(FunctionCallInfo fcinfo, int arg,
					   const DlExtension *extension, DlKey *key);
extern DlKey *dl_arg_keys(FunctionCallInfo fcinfo, int arg,
						  const DlExtension *extension, int *nkeys);
extern int64 dl_arg_token(FunctionCallInfo fcinfo, int arg);
extern int64 dl_arg_ttl(FunctionCallInfo fcinfo, int arg, int64 if_null);
extern int64 dl_arg_wait(FunctionCallInfo fcinfo, int arg);
extern DlMode dl_arg_mode(FunctionCallInfo fcinfo, int arg);
extern DlScope dl_arg_scope(FunctionCallInfo fcinfo, int arg);
extern void dl_arg_holder(FunctionCallInfo fcinfo, int arg, char *holder);
extern int	dl_arg_max_holders(FunctionCallInfo fcinfo, int arg);
extern void dl_arg_request_id(FunctionCallInfo fcinfo, int arg, char *request_id);

#endif							/* DISTLOCK_ARGUMENTS_H */
