/*
 * etcd's lock service, through its JSON gateway.  One lease for all locks of a
 * client, as the sessions of the Go client have it, or one for each lock.
 * "target" is http://host:port.
 */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fibers.h"
#include "rival.h"

typedef struct Session
{
	CURL	   *curl;
	CURLM	   *multi;			/* with that one only */
	curl_socket_t socket;
	int			waits_for;		/* CURL_POLL_IN, CURL_POLL_OUT, or neither */
	int64_t		until;			/* or for this moment */
	const char *target;
	int			ttl_ms;
	bool		lease_each;
	char		lease[32];		/* of all locks; empty if there is none yet */
	char		answer[1024];
	size_t		length;
} Session;

static size_t
collect(char *data, size_t size, size_t n, void *arg)
{
	Session    *session = arg;

	if (session->length + size * n >= sizeof(session->answer))
		die("etcd: the answer is too long");
	memcpy(session->answer + session->length, data, size * n);
	session->length += size * n;
	session->answer[session->length] = '\0';
	return size * n;
}

static int
note_socket(CURL *curl, curl_socket_t socket, int what, void *arg, void *unused)
{
	Session    *session = arg;

	session->socket = socket;
	session->waits_for = what;
	return 0;
}

static int
note_timeout(CURLM *multi, long timeout_ms, void *arg)
{
	Session    *session = arg;

	session->until = timeout_ms < 0 ? FOREVER : now_us() + timeout_ms * 1000;
	return 0;
}

/* What curl_easy_perform() does, but for how it waits. */
static CURLcode
perform(Session *session)
{
	int			running;
	int			unused;
	CURLcode	rc;

	curl_multi_add_handle(session->multi, session->curl);
	do
	{
		bool		writing = session->waits_for == CURL_POLL_OUT;
		curl_socket_t socket = session->socket;

		if (session->waits_for != CURL_POLL_IN && !writing)
			sleep_until(session->until);
		else if (wait_for_file(socket, writing, session->until))
		{
			curl_multi_socket_action(session->multi, socket,
									 writing ? CURL_CSELECT_OUT : CURL_CSELECT_IN, &running);
			continue;
		}
		session->until = FOREVER;
		curl_multi_socket_action(session->multi, CURL_SOCKET_TIMEOUT, 0, &running);
	} while (running > 0);
	rc = curl_multi_info_read(session->multi, &unused)->data.result;
	curl_multi_remove_handle(session->multi, session->curl);
	return rc;
}

static void
post(Session *session, const char *path, const char *body)
{
	char		url[256];
	CURLcode	rc;
	long		status;

	snprintf(url, sizeof(url), "%s%s", session->target, path);
	session->length = 0;
	session->answer[0] = '\0';
	curl_easy_setopt(session->curl, CURLOPT_URL, url);
	curl_easy_setopt(session->curl, CURLOPT_POSTFIELDS, body);
	rc = perform(session);
	curl_easy_getinfo(session->curl, CURLINFO_RESPONSE_CODE, &status);
	if (rc != CURLE_OK || status != 200)
		die("etcd: %s: %s %s", path, curl_easy_strerror(rc), session->answer);
}

/* The value of a string in the answer. */
static void
read_string(Session *session, const char *key, char *value, size_t size)
{
	char		quoted[32];
	char	   *start;
	size_t		len;

	snprintf(quoted, sizeof(quoted), "\"%s\":\"", key);
	start = strstr(session->answer, quoted);
	if (!start)
		die("etcd: no %s in %s", key, session->answer);
	start += strlen(quoted);
	len = strcspn(start, "\"");
	if (len >= size)
		die("etcd: %s is too long", key);
	memcpy(value, start, len);
	value[len] = '\0';
}

static void
base64(const char *text, char *out)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	size_t		len = strlen(text);

	for (size_t i = 0; i < len; i += 3)
	{
		unsigned	n = (unsigned char) text[i] << 16;

		if (i + 1 < len)
			n |= (unsigned char) text[i + 1] << 8;
		if (i + 2 < len)
			n |= (unsigned char) text[i + 2];
		*out++ = digits[n >> 18];
		*out++ = digits[n >> 12 & 63];
		*out++ = i + 1 < len ? digits[n >> 6 & 63] : '=';
		*out++ = i + 2 < len ? digits[n & 63] : '=';
	}
	*out = '\0';
}

static void *
open_session(const char *target, int number, int ttl_ms)
{
	Session    *session = calloc(1, sizeof(Session));

	session->target = target;
	session->ttl_ms = ttl_ms;
	session->curl = curl_easy_init();
	curl_easy_setopt(session->curl, CURLOPT_WRITEFUNCTION, collect);
	curl_easy_setopt(session->curl, CURLOPT_WRITEDATA, session);
	curl_easy_setopt(session->curl, CURLOPT_TCP_NODELAY, 1L);
	curl_easy_setopt(session->curl, CURLOPT_NOSIGNAL, 1L);
	session->multi = curl_multi_init();
	curl_multi_setopt(session->multi, CURLMOPT_SOCKETFUNCTION, note_socket);
	curl_multi_setopt(session->multi, CURLMOPT_SOCKETDATA, session);
	curl_multi_setopt(session->multi, CURLMOPT_TIMERFUNCTION, note_timeout);
	curl_multi_setopt(session->multi, CURLMOPT_TIMERDATA, session);
	return session;
}

static void *
open_lease_each(const char *target, int number, int ttl_ms)
{
	Session    *session = open_session(target, number, ttl_ms);

	session->lease_each = true;
	return session;
}

static void
grant_lease(Session *session)
{
	char		body[64];

	snprintf(body, sizeof(body), "{\"TTL\":%d}", (session->ttl_ms + 999) / 1000);
	post(session, "/v3/lease/grant", body);
	read_string(session, "ID", session->lease, sizeof(session->lease));
}

static void
acquire(void *arg, const char *name, int ttl_ms, Grant *grant)
{
	Session    *session = arg;
	char		body[256];
	char		encoded[96];

	if (session->lease_each || !session->lease[0])
		grant_lease(session);
	base64(name, encoded);
	snprintf(body, sizeof(body), "{\"name\":\"%s\",\"lease\":\"%s\"}", encoded, session->lease);
	post(session, "/v3/lock/lock", body);
	read_string(session, "key", grant->secret, sizeof(grant->secret));
	snprintf(grant->lease, sizeof(grant->lease), "%s", session->lease);
}

static void
release(void *arg, Grant *grant)
{
	Session    *session = arg;
	char		body[256];

	if (session->lease_each)
	{
		snprintf(body, sizeof(body), "{\"ID\":\"%s\"}", grant->lease);
		post(session, "/v3/lease/revoke", body);
		return;
	}
	snprintf(body, sizeof(body), "{\"key\":\"%s\"}", grant->secret);
	post(session, "/v3/lock/unlock", body);
}

static void
renew(void *arg, Grant *grant, int ttl_ms)
{
	char		body[64];

	snprintf(body, sizeof(body), "{\"ID\":\"%s\"}", grant->lease);
	post(arg, "/v3/lease/keepalive", body);
}

const Rival etcd_rivals[] = {
	{"etcd", open_session, acquire, release, renew, true},
	{"etcd-lease-each", open_lease_each, acquire, release, renew, true},
	{NULL}
};
