/*-------------------------------------------------------------------------
 *
 * client.h
 *	  What the parts of a client of the fault test share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLIENT_H
#define CLIENT_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define lengthof(array)	((int) (sizeof(array) / sizeof((array)[0])))

typedef enum Outcome
{
	ANSWERED,
	NONE,						/* answered with null, or no rows */
	REFUSED,					/* an error, and the connection stands */
	LOST						/* nobody knows */
} Outcome;

typedef enum Scope
{
	LEASE,
	SESSION,
	TRANSACTION
} Scope;

typedef struct Lease
{
	char		names[64];		/* with commas between them */
	bool		several;
	int			ttl;			/* ms; 0: none */
	int			wait;			/* ms; -1: as long as it takes */
	Scope		scope;
	bool		durable;
	int			connection;
	long long	token;
	int64_t		until;			/* we believe in it so long */
	bool		in_doubt;		/* a commit under it may be under way */
} Lease;

/* A workload: what is asked for, and what is done while it is held. */
typedef struct Workload
{
	const char *name;
	void		(*ask) (void);
	const char *prefix;			/* of the names, where that is not in the code */
	int			nnames;
	void		(*work) (Lease *lease);
	int			walk_away;		/* percentage of leases not released */
	bool		patient;		/* have no timeouts in the session */
	void		(*finish) (void);	/* what is left to be done at the end */
} Workload;

/* client.c */
extern const Workload *workload;
extern int	number;
extern int	longest_ttl;
extern const char *directory;
extern volatile sig_atomic_t stopping;

extern void die(const char *what) __attribute__((noreturn));
extern int	pick(int n);
extern bool chance(int percent);
extern int64_t now_us(void);
extern void pause_ms(int ms);

/* session.c */
extern int	connection;			/* how often we have connected */
extern char sqlstate[6];		/* of the last call that was refused */

extern void open_log(void);
extern bool is_dead(int client);
extern int64_t note(const char *event, int id, const char *format,...)
			__attribute__((format(printf, 3, 4)));
extern int	new_id(void);
extern void connect_again(void);
extern bool connected(void);
extern void disconnect(void);
extern void hang_up(int id, const char *sql);
extern Outcome ask_server(int id, const char *sql, const char *kind, int wait,
						  char *value, size_t size);
extern Outcome call(const char *what, const Lease *lease, const char *sql,
					char *value, size_t size);
extern void roll_back(void);

/* lease.c */
extern Lease new_lease(const char *prefix, int nnames, bool may_be_session);
extern bool believed(const Lease *lease);
extern Outcome acquire(Lease *lease, const char *mode, int limit,
					   const char *request, bool give_up);
extern Outcome renew(Lease *lease, int ttl);
extern Outcome use(const char *what, Lease *lease);
extern void hold(Lease *lease);

/* write.c */
extern void write_guarded(Lease *lease);
extern void write_forced(Lease *lease);
extern void write_protected(Lease *lease);
extern void write_prepared(Lease *lease);
extern void settle_all(void);
extern void finish_prepared(void);
extern void write_file(Lease *lease);

/* workloads.c */
extern const Workload workloads[];
extern const int nworkloads;

#endif							/* CLIENT_H */
