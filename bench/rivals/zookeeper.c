/*
 * ZooKeeper, as Curator's InterProcessMutex goes about it: an ephemeral
 * sequential node under one of the name; the least has the lock, any other watches
 * the one before it.  "target" is host:port.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zookeeper/zookeeper.h>

#include "fibers.h"
#include "rival.h"

typedef struct Session
{
	zhandle_t  *handle;
	bool		connected;
	bool		fired;

	/* Of the last call. */
	bool		answered;
	int			rc;
	char	   *text;			/* who wants an answer sets where it goes */
	size_t		text_size;
} Session;

static void
session_watcher(zhandle_t *handle, int type, int state, const char *path, void *arg)
{
	Session    *session = arg;

	if (type == ZOO_SESSION_EVENT && state == ZOO_CONNECTED_STATE)
		session->connected = true;
}

static void
node_watcher(zhandle_t *handle, int type, int state, const char *path, void *arg)
{
	Session    *session = arg;

	if (type != ZOO_SESSION_EVENT)
		session->fired = true;
}

/* Let the library work until something has happened. */
static void
wait_for(Session *session, const bool *happened)
{
	while (!*happened)
	{
		int			fd;
		int			interest;
		struct timeval tv;
		int			rc = zookeeper_interest(session->handle, &fd, &interest, &tv);
		bool		writing = interest & ZOOKEEPER_WRITE;
		int64_t		until = now_us() + (int64_t) tv.tv_sec * 1000000 + tv.tv_usec;

		if (rc != ZOK)
			die("zookeeper: %s", zerror(rc));
		if (!wait_for_file(fd, writing, until))
			interest = 0;
		else if (writing)
			interest = ZOOKEEPER_WRITE;
		rc = zookeeper_process(session->handle, interest);
		if (rc != ZOK && rc != ZNOTHING)
			die("zookeeper: %s", zerror(rc));
	}
}

static void
note_answer(int rc, const void *arg)
{
	Session    *session = (Session *) arg;

	session->rc = rc;
	session->answered = true;
}

static void
note_string(int rc, const char *value, const void *arg)
{
	Session    *session = (Session *) arg;

	if (rc == ZOK && session->text)
		snprintf(session->text, session->text_size, "%s", value);
	note_answer(rc, arg);
}

static void
note_stat(int rc, const struct Stat *stat, const void *arg)
{
	note_answer(rc, arg);
}

/* Returns what the server says to a call, of which this is what the library did. */
static int
answer_to(Session *session, int rc)
{
	if (rc == ZOK)
	{
		wait_for(session, &session->answered);
		rc = session->rc;
	}
	session->answered = false;
	return rc;
}

/* Where the path that was made is to go, if it is of interest. */
static int
create(Session *session, const char *path, int mode, char *made, size_t size)
{
	session->text = made;
	session->text_size = size;
	return answer_to(session, zoo_acreate(session->handle, path, "", 0, &ZOO_OPEN_ACL_UNSAFE, mode,
										  note_string, session));
}

static void *
open_session(const char *target, int number, int ttl_ms)
{
	Session    *session = calloc(1, sizeof(Session));

	zoo_set_debug_level(ZOO_LOG_LEVEL_ERROR);
	session->handle = zookeeper_init(target, session_watcher, ttl_ms, NULL, session, 0);
	if (!session->handle)
		die("zookeeper: could not connect");
	wait_for(session, &session->connected);
	(void) create(session, "/locks", ZOO_PERSISTENT, NULL, 0);
	return session;
}

static void
create_node(Session *session, const char *directory, Grant *grant)
{
	char		path[128];
	int			rc;

	snprintf(path, sizeof(path), "%s/lock-", directory);
	for (;;)
	{
		rc = create(session, path, ZOO_EPHEMERAL_SEQUENTIAL, grant->secret, sizeof(grant->secret));
		if (rc == ZOK)
			return;
		if (rc != ZNONODE)
			die("zookeeper: create: %s", zerror(rc));
		(void) create(session, directory, ZOO_CONTAINER, NULL, 0);
	}
}

/* Of these nodes, the greatest one that is less than "mine"; it replaces that one. */
typedef struct Search
{
	Session    *session;
	char	   *mine;
	size_t		size;
	bool		found;
} Search;

static void
search_nodes(int rc, const struct String_vector *nodes, const void *arg)
{
	Search	   *search = (Search *) arg;
	const char *last = NULL;

	for (int i = 0; rc == ZOK && i < nodes->count; i++)
	{
		if (strcmp(nodes->data[i], search->mine) < 0 && (!last || strcmp(nodes->data[i], last) > 0))
			last = nodes->data[i];
	}
	search->found = last != NULL;
	if (last)
		snprintf(search->mine, search->size, "%s", last);
	note_answer(rc, search->session);
}

/* Writes the path of the node before ours; returns false if there is none. */
static bool
find_predecessor(Session *session, const char *directory, const char *mine, char *found, size_t size)
{
	char		name[64];
	Search		search = {session, name, sizeof(name)};
	int			rc;

	snprintf(name, sizeof(name), "%s", mine);
	rc = answer_to(session, zoo_aget_children(session->handle, directory, 0, search_nodes, &search));
	if (rc != ZOK)
		die("zookeeper: get children: %s", zerror(rc));
	snprintf(found, size, "%s/%s", directory, name);
	return search.found;
}

static void
release(void *arg, Grant *grant)
{
	Session    *session = arg;
	int			rc = answer_to(session, zoo_adelete(session->handle, grant->secret, -1, note_answer, session));

	if (rc != ZOK)
		die("zookeeper: delete: %s", zerror(rc));
}

static void
acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	Session    *session = arg;
	char		directory[96];
	char		before[192];

	snprintf(grant->name, sizeof(grant->name), "%s", name);
	snprintf(directory, sizeof(directory), "/locks/%s", name);
	create_node(session, directory, grant);
	while (find_predecessor(session, directory, grant->secret + strlen(directory) + 1,
							before, sizeof(before)))
	{
		int			rc;

		session->fired = false;
		rc = answer_to(session, zoo_awexists(session->handle, before, node_watcher, session,
											 note_stat, session));
		if (rc == ZNONODE)
			continue;
		if (rc != ZOK)
			die("zookeeper: exists: %s", zerror(rc));
		wait_for(session, &session->fired);
	}
}

const Rival zookeeper_rivals[] = {
	{"zookeeper", open_session, acquire, release, NULL, true},
	{NULL}
};
