/*-------------------------------------------------------------------------
 *
 * token.h
 *	  The supply of fencing tokens.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_TOKEN_H
#define DISTLOCK_TOKEN_H

#include "engine.h"
#include "extension.h"

extern DlTokens *dl_token_supply(const DlExtension *extension);
extern void dl_token_reserve(const DlExtension *extension);
extern void dl_token_forget(Oid database);

#endif							/* DISTLOCK_TOKEN_H */
