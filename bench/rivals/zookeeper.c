/*
 * ZooKeeper, as Curator's InterProcessMutex goes about it: an ephemeral
 * sequential node under one of the name; the least has the lock, any other watches
 * the one before it.  "target" is host:port.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zookeeper/zookeeper.h>

#include "rival.h"

typedef struct Session
{
	zhandle_t  *handle;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	bool		connected;
	bool		fired;
} Session;

/* Called in a thread of the library. */
static void
note_event(Session *session, bool connected)
{
	pthread_mutex_lock(&session->mutex);
	if (connected)
		session->connected = true;
	else
		session->fired = true;
	pthread_cond_broadcast(&session->changed);
	pthread_mutex_unlock(&session->mutex);
}

static void
session_watcher(zhandle_t *handle, int type, int state, const char *path, void *arg)
{
	if (type == ZOO_SESSION_EVENT && state == ZOO_CONNECTED_STATE)
		note_event(arg, true);
}

static void
node_watcher(zhandle_t *handle, int type, int state, const char *path, void *arg)
{
	if (type != ZOO_SESSION_EVENT)
		note_event(arg, false);
}

static void *
open_session(const char *target, int number, int ttl_ms)
{
	Session    *session = calloc(1, sizeof(Session));

	pthread_mutex_init(&session->mutex, NULL);
	pthread_cond_init(&session->changed, NULL);
	zoo_set_debug_level(ZOO_LOG_LEVEL_ERROR);
	session->handle = zookeeper_init(target, session_watcher, ttl_ms, NULL, session, 0);
	if (!session->handle)
		die("zookeeper: could not connect");
	pthread_mutex_lock(&session->mutex);
	while (!session->connected)
		pthread_cond_wait(&session->changed, &session->mutex);
	pthread_mutex_unlock(&session->mutex);
	(void) zoo_create(session->handle, "/locks", "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_PERSISTENT, NULL, 0);
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
		rc = zoo_create(session->handle, path, "", 0, &ZOO_OPEN_ACL_UNSAFE,
						ZOO_EPHEMERAL_SEQUENTIAL, grant->secret, sizeof(grant->secret));
		if (rc == ZOK)
			return;
		if (rc != ZNONODE)
			die("zookeeper: create: %s", zerror(rc));
		(void) zoo_create(session->handle, directory, "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_CONTAINER, NULL, 0);
	}
}

/* The greatest node that is less than ours; false if there is none. */
static bool
find_predecessor(Session *session, const char *directory, const char *mine, char *found, size_t size)
{
	struct String_vector nodes;
	const char *last = NULL;
	int			rc = zoo_get_children(session->handle, directory, 0, &nodes);

	if (rc != ZOK)
		die("zookeeper: get children: %s", zerror(rc));
	for (int i = 0; i < nodes.count; i++)
	{
		if (strcmp(nodes.data[i], mine) < 0 && (!last || strcmp(nodes.data[i], last) > 0))
			last = nodes.data[i];
	}
	if (last)
		snprintf(found, size, "%s/%s", directory, last);
	deallocate_String_vector(&nodes);
	return last != NULL;
}

static void
release(void *arg, Grant *grant)
{
	Session    *session = arg;
	int			rc = zoo_delete(session->handle, grant->secret, -1);

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
		rc = zoo_wexists(session->handle, before, node_watcher, session, NULL);
		if (rc == ZNONODE)
			continue;
		if (rc != ZOK)
			die("zookeeper: exists: %s", zerror(rc));
		pthread_mutex_lock(&session->mutex);
		while (!session->fired)
			pthread_cond_wait(&session->changed, &session->mutex);
		pthread_mutex_unlock(&session->mutex);
	}
}

const Rival zookeeper_rivals[] = {
	{"zookeeper", open_session, acquire, release, NULL, true},
	{NULL}
};
