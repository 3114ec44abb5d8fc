/*-------------------------------------------------------------------------
 *
 * extension.h
 *	  Which installation of the extension a call belongs to.
 *
 *-------------------------------------------------------------------------
 */
#ifndef DISTLOCK_EXTENSION_H
#define DISTLOCK_EXTENSION_H

typedef struct DlExtension
{
	Oid			oid;			/* in pg_extension */
	Oid			sequence;		/* distlock_token_seq */
	Oid			control;		/* distlock_control */
	Oid			lease_table;	/* distlock_lease_table */
} DlExtension;

extern DlExtension dl_extension_of(Oid function);

#endif							/* DISTLOCK_EXTENSION_H */
