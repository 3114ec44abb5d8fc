"""An application that takes leases with psycopg 3 or psycopg 2.

usage: psycopg_app.py {psycopg|psycopg2} {direct|pooled}

Connects by the environment (PGHOST, PGPORT, PGUSER, PGDATABASE), directly or
to a pooler in transaction mode, and prints TAP.  The table turns must be
there; t/020_drivers.pl makes it.

A pooler lends out a server connection for one transaction at a time.  So,
pooled, nothing here relies on having the same one again: no session scope,
and no prepared statement.
"""

import datetime
import importlib
import os
import signal
import subprocess
import sys
import threading
import time

DRIVER, ROUTE = sys.argv[1:3]
POOLED = ROUTE == "pooled"
driver = importlib.import_module(DRIVER)
PSYCOPG3 = DRIVER == "psycopg"

LONG = "60s"  # a wait or TTL that no test comes to the end of
NOW = "extract(epoch FROM clock_timestamp())"
WORKERS = 4
TURNS = 25


# ---- TAP ----

tests = failures = 0


def ok(good, name, note=""):
    global tests, failures
    tests += 1
    print(f"{'ok' if good else 'not ok'} {tests} - {name}", flush=True)
    if not good:
        failures += 1
        print("# " + str(note).replace("\n", "\n# "), flush=True)


def equal(got, expected, name):
    ok(
        got == expected and type(got) is type(expected),
        name,
        f"got {got!r}, expected {expected!r}",
    )


def error_of(name, sqlstate, conn, query, *args):
    """Run a query that has to fail; return the diagnostics of its error."""
    try:
        result = value(conn, query, *args)
    except driver.Error as error:
        equal(error.diag.sqlstate, sqlstate, name)
        return error.diag
    ok(False, name, f"no error, but {result!r}")
    return None


# ---- Database ----


def connect(autocommit=True, **options):
    if PSYCOPG3:
        # 0: prepare every statement at once; None: never
        conn = driver.connect("", prepare_threshold=None if POOLED else 0, **options)
    else:
        conn = driver.connect("", **options)
    conn.autocommit = autocommit
    return conn


def value(conn, query, *args):
    """The first column of the only row."""
    with conn.cursor() as cur:
        cur.execute(query, args)
        (row,) = cur.fetchall()
        return row[0]


def run(conn, query, *args):
    with conn.cursor() as cur:
        cur.execute(query, args)


def wait_for(conn, what, query, *args):
    limit = time.monotonic() + 180
    while not value(conn, query, *args):
        if time.monotonic() > limit:
            raise TimeoutError(what)
        time.sleep(0.05)


def wait_for_waiter(conn, name):
    wait_for(
        conn,
        f"a waiter of {name}",
        "SELECT EXISTS (SELECT FROM distlock_waiters WHERE name = %s AND position > 0)",
        name,
    )


def try_lock(conn, name):
    return value(conn, "SELECT distlock_try_acquire(%s, ttl => %s)", name, LONG)


def release(conn, name, token):
    return value(conn, "SELECT distlock_release(%s, %s)", name, token)


def elsewhere(pid):
    """A connection that is not served by the server process with this id.

    Pooled, a transaction of ours keeps that process busy, whichever of the
    pool's it is.  Returns what has to be closed, too.
    """
    if not POOLED:
        return connect(), []
    others = []
    while True:
        conn = connect(autocommit=False)
        if value(conn, "SELECT pg_backend_pid()") == pid:
            break
        others.append(conn)
    for other in others:
        other.close()
    return connect(), [conn]


# ---- Tests ----


def basics(conn):
    """Acquire, renew, check, release, with the types the driver sends."""
    other = connect()
    minute = datetime.timedelta(minutes=1)

    token = value(conn, "SELECT distlock_acquire(%s, %s)", "basics", minute)
    ok(type(token) is int and token > 0, "acquire: the token is an int", token)
    equal(
        value(conn, "SELECT ttl FROM distlock_leases WHERE name = %s", "basics"),
        minute,
        "acquire: the TTL is the timedelta given",
    )
    equal(
        value(conn, "SELECT distlock_check(%s, %s)", "basics", token),
        True,
        "check: true",
    )
    equal(try_lock(other, "basics"), None, "try_acquire: None while another holds it")

    before = datetime.datetime.now(datetime.timezone.utc)
    expiry = value(
        conn,
        "SELECT distlock_renew(%s, %s, ttl => %s)",
        "basics",
        token,
        datetime.timedelta(hours=1),
    )
    ok(
        isinstance(expiry, datetime.datetime) and expiry.tzinfo is not None,
        "renew: the expiry is a datetime with time zone",
        expiry,
    )
    ok(expiry > before + datetime.timedelta(minutes=50), "renew: it is later", expiry)
    equal(
        value(conn, "SELECT renewals FROM distlock_leases WHERE name = %s", "basics"),
        1,
        "renew: counted",
    )

    equal(release(conn, "basics", token), True, "release: true")
    equal(release(conn, "basics", token), False, "release again: false")
    equal(
        value(conn, "SELECT distlock_check(%s, %s)", "basics", token),
        False,
        "check after release: false",
    )

    again = value(
        conn,
        "SELECT distlock_acquire(name => %s, ttl => %s, wait => %s, mode => %s,"
        " scope => %s, holder => %s, durable => %s)",
        "basics",
        "1 minute",
        None,
        "exclusive",
        "lease",
        "Zo\u00eb",
        False,
    )
    ok(again > token, "acquire with all arguments: a greater token", again)
    equal(
        value(conn, "SELECT holder FROM distlock_leases WHERE name = %s", "basics"),
        "Zo\u00eb",
        "acquire with all arguments: the holder given",
    )
    equal(
        value(conn, "SELECT distlock_release(%s, %s::bigint)", "basics", str(again)),
        True,
        "release: the token may come as text",
    )

    named = connect(application_name=f"invoices-{ROUTE}")
    token = try_lock(named, "basics")
    equal(
        value(conn, "SELECT holder FROM distlock_leases WHERE name = %s", "basics"),
        f"invoices-{ROUTE}",
        "acquire: the holder is the client's application_name",
    )
    release(named, "basics", token)
    named.close()

    tokens = []
    for _ in range(8):
        tokens.append(try_lock(conn, "basics"))
        release(conn, "basics", tokens[-1])
    equal(
        tokens,
        sorted(set(tokens)),
        "the same statement, many times: tokens increase",
    )
    other.close()


def binary(conn):
    """psycopg 3 can ask for results, and send arguments, in binary."""
    with conn.cursor(binary=True) as cur:
        cur.execute(
            "SELECT distlock_acquire(%b, %b)",
            ("binary", datetime.timedelta(seconds=60)),
        )
        token = cur.fetchone()[0]
        ok(type(token) is int, "binary: the token is an int", token)
        cur.execute("SELECT distlock_renew(%b, %b)", ("binary", token))
        ok(isinstance(cur.fetchone()[0], datetime.datetime), "binary: renew")
        cur.execute("SELECT distlock_release(%b, %b)", ("binary", token))
        equal(cur.fetchone()[0], True, "binary: release")


def several(conn):
    """Several locks: the names are a list."""
    other = connect()

    def held(token):
        return value(
            conn,
            "SELECT array_agg(name ORDER BY name) FROM distlock_leases WHERE token = %s",
            token,
        )

    names = ["several b", "several, a", 'several "c"', "several b"]
    distinct = sorted(set(names))
    token = value(conn, "SELECT distlock_acquire_all(%s, %s)", names, LONG)
    ok(type(token) is int and token > 0, "several: the token is an int", token)
    equal(held(token), distinct, "several: a lock for each name of the list")
    equal(
        value(other, "SELECT distlock_try_acquire_all(%s)", ["free", names[0]]),
        None,
        "several: None while another holds one",
    )
    equal(
        value(conn, "SELECT distlock_check_all(%s, %s)", names, token),
        True,
        "several: check_all",
    )
    ok(
        isinstance(
            value(conn, "SELECT distlock_renew_all(%s, %s)", names, token),
            datetime.datetime,
        ),
        "several: renew_all",
    )
    equal(release(conn, names[0], token), True, "several: one released alone")
    equal(
        value(conn, "SELECT distlock_release_all(%s, %s)", names, token),
        False,
        "several: release_all, one was not held any more",
    )
    equal(held(token), None, "several: but all are released")

    token = value(
        conn,
        "SELECT distlock_try_acquire_all(names => %s, ttl => %s, wait => %s,"
        " mode => %s, scope => %s, holder => %s, durable => %s, max_holders => %s,"
        " request_id => %s, advisory_key => %s)",
        ["several x", "several y"],
        LONG,
        datetime.timedelta(0),
        "shared",
        "lease",
        "Zo\u00eb",
        False,
        3,
        f"request {DRIVER}",
        None,
    )
    equal(held(token), ["several x", "several y"], "several: with all arguments")
    run(conn, "SELECT distlock_release_all(%s, %s)", ["several x", "several y"], token)

    for what, argument in (
        ("varchar[]", "%s::varchar[]"),
        ("array of parameters", "ARRAY[%s, %s]"),
        ("array of parameters cast to varchar", "ARRAY[%s::varchar, %s::varchar]"),
        ("literal", "%s"),
    ):
        args = {"varchar[]": [["l 1", "l 2"]], "literal": ["{l 1,l 2}"]}.get(
            what, ["l 1", "l 2"]
        )
        token = value(conn, f"SELECT distlock_acquire_all({argument}, '1min')", *args)
        equal(held(token), ["l 1", "l 2"], f"several: {what}")
        value(conn, f"SELECT distlock_release_all({argument}, %s)", *args, token)

    error_of(
        "several: 22023 for an empty list",
        "22023",
        conn,
        "SELECT distlock_acquire_all(%s::text[])",
        [],
    )
    error_of(
        "several: 22004 for None among the names",
        "22004",
        conn,
        "SELECT distlock_acquire_all(%s)",
        ["a", None],
    )
    if not PSYCOPG3:  # which sends a list as a string that would be a name
        error_of(
            "several: a list of names is no name",
            "42883",
            conn,
            "SELECT distlock_acquire(%s)",
            ["a", "b"],
        )
    other.close()


def semaphore_and_retry(conn):
    """max_holders and request_id, by name."""
    acquire = (
        "SELECT distlock_try_acquire(%s, ttl => %s, max_holders => %s, request_id => %s)"
    )
    tokens = [
        value(conn, acquire, "permits", LONG, 2, f"{DRIVER} {i}") for i in range(3)
    ]
    ok(tokens[0] < tokens[1], "semaphore: two permits of two", tokens)
    equal(tokens[2], None, "semaphore: no third")
    other = connect()
    equal(
        value(other, acquire, "permits", LONG, 2, f"{DRIVER} 0"),
        tokens[0],
        "request_id: from another connection, the same token",
    )
    other.close()
    for token in tokens[:2]:
        release(conn, "permits", token)


def call(conn):
    """CALL returns a row: the argument that is INOUT."""
    token = value(conn, "CALL distlock_lock(%s, NULL, %s)", "call", LONG)
    ok(type(token) is int and token > 0, "CALL: the token is an int", token)
    equal(
        value(conn, "SELECT distlock_check('call', %s)", token), True, "CALL: check"
    )
    equal(
        value(conn, "CALL distlock_watch_next(name => %s, token => NULL)", "call"),
        token,
        "CALL: watch_next, by names",
    )
    equal(
        value(conn, "CALL distlock_watch_next(%s, %s, %s)", "call", token, "1ms"),
        token,
        "CALL: watch_next, at the end of the wait",
    )
    other = connect()
    error_of(
        "CALL: 55P03 when the wait is over",
        "55P03",
        other,
        "CALL distlock_lock(name => %s, wait => %s)",
        "call",
        "10ms",
    )
    release(conn, "call", token)
    equal(
        value(other, "CALL distlock_watch_next(%s, %s)", "call", token),
        None,
        "CALL: watch_next, None for a lock that is free",
    )
    token = value(
        conn,
        "CALL distlock_lock(name => %s, token => NULL, ttl => %s, wait => %s,"
        " mode => %s, scope => %s, holder => %s, durable => %s, max_holders => %s,"
        " request_id => %s, advisory_key => %s)",
        "call",
        datetime.timedelta(minutes=1),
        None,
        "exclusive",
        "lease",
        "me",
        True,
        None,
        f"call {DRIVER}",
        None,
    )
    equal(release(conn, "call", token), True, "CALL: with all arguments")

    txn = connect(autocommit=False)
    run(txn, "INSERT INTO turns VALUES (0)")
    value(txn, "CALL distlock_lock('call', NULL, %s)", LONG)
    error_of("CALL, autocommit off: an error behind it", "22012", txn, "SELECT 1 / 0")
    txn.rollback()
    equal(
        value(conn, "SELECT count(*) FROM turns"),
        0,
        "CALL, autocommit off: what came before is not committed",
    )
    equal(
        value(conn, "SELECT count(*) FROM distlock_leases WHERE name = 'call'"),
        0,
        "CALL, autocommit off: no lease is left",
    )
    txn.close()
    if PSYCOPG3:
        try:
            with conn.pipeline():
                run(conn, "INSERT INTO turns VALUES (0)")
                run(conn, "CALL distlock_lock('call', NULL, '1h')")
                run(conn, "SELECT 1 / 0")
            ok(False, "CALL, pipeline: no error")
        except driver.Error as error:
            equal(error.diag.sqlstate, "22012", "CALL, pipeline: the error")
        equal(
            value(
                conn,
                "SELECT (SELECT count(*) FROM turns) +"
                " (SELECT count(*) FROM distlock_leases WHERE name = 'call')",
            ),
            0,
            "CALL, pipeline: neither is left",
        )
    other.close()


def errors(conn):
    other = connect()
    token = value(
        conn, "SELECT distlock_acquire('errors', %s, holder => 'the holder')", LONG
    )

    diag = error_of(
        "error: 55P03 when the wait is over",
        "55P03",
        other,
        "SELECT distlock_acquire('errors', wait => '10ms')",
    )
    ok('"errors"' in diag.message_primary, "55P03: message", diag.message_primary)
    ok(
        '"the holder"' in diag.message_detail and str(token) in diag.message_detail,
        "55P03: the detail names holder and token",
        diag.message_detail,
    )
    ok(diag.severity == "ERROR", "55P03: severity", diag.severity)

    run(other, "BEGIN")
    run(other, "SET LOCAL lock_timeout = '10ms'")
    error_of(
        "error: 55P03 by lock_timeout",
        "55P03",
        other,
        "SELECT distlock_try_acquire('errors', wait => NULL)",
    )
    run(other, "ROLLBACK")

    release(conn, "errors", token)
    diag = error_of(
        "error: LK001 from renew of a lost lease",
        "LK001",
        conn,
        "SELECT distlock_renew(%s, %s)",
        "errors",
        token,
    )
    ok('"errors"' in diag.message_primary, "LK001: message", diag.message_primary)
    ok(diag.message_detail and diag.message_hint, "LK001: detail and hint")

    for bad, what in (("0", "zero"), ("-1s", "negative"), ("1 month", "a month")):
        error_of(
            f"error: 22023 for a TTL that is {what}",
            "22023",
            conn,
            "SELECT distlock_acquire('errors', %s)",
            bad,
        )
    error_of(
        "error: 22023 for an empty name", "22023", conn, "SELECT distlock_acquire('')"
    )
    error_of(
        "error: 22004 for None", "22004", conn, "SELECT distlock_acquire(%s)", None
    )
    token = try_lock(other, "errors")
    ok(token is not None, "after the errors: nobody holds it")
    release(other, "errors", token)
    other.close()


def transactions(conn):
    """autocommit off: the driver begins, the application ends."""
    txn = connect(autocommit=False)

    token = try_lock(txn, "txn")
    equal(try_lock(conn, "txn"), None, "autocommit off: held before the commit")
    txn.rollback()
    equal(
        value(conn, "SELECT distlock_check('txn', %s)", token),
        False,
        "autocommit off: rollback leaves no lease",
    )

    try_lock(txn, "txn")
    error_of("autocommit off: an error after acquire", "22012", txn, "SELECT 1 / 0")
    txn.rollback()
    equal(
        value(conn, "SELECT count(*) FROM distlock_leases WHERE name = 'txn'"),
        0,
        "autocommit off: the error leaves no lease",
    )

    token = try_lock(txn, "txn")
    txn.commit()
    equal(
        value(conn, "SELECT distlock_check('txn', %s)", token),
        True,
        "autocommit off: commit keeps the lease",
    )

    equal(release(txn, "txn", token), True, "autocommit off: release")
    equal(try_lock(conn, "txn"), None, "autocommit off: held until the commit")
    txn.rollback()
    equal(
        value(conn, "SELECT distlock_check('txn', %s)", token),
        True,
        "autocommit off: rollback of the release keeps the lease",
    )
    release(txn, "txn", token)
    txn.commit()
    token = try_lock(conn, "txn")
    ok(token is not None, "autocommit off: released by the commit")
    release(conn, "txn", token)

    token = value(
        txn, "SELECT distlock_acquire('txn', NULL, scope => 'transaction')"
    )
    equal(try_lock(conn, "txn"), None, "scope transaction: held")
    txn.commit()
    equal(
        value(conn, "SELECT distlock_check('txn', %s)", token),
        False,
        "scope transaction: gone after the commit",
    )
    txn.close()

    if PSYCOPG3:
        with connect() as block:
            with block.transaction():
                outer = try_lock(block, "outer")
                try:
                    with block.transaction():
                        inner = try_lock(block, "inner")
                        raise driver.Rollback()
                except driver.Rollback:
                    pass
            equal(
                value(conn, "SELECT distlock_check('inner', %s)", inner),
                False,
                "transaction(): the inner block rolled back leaves no lease",
            )
            equal(release(conn, "outer", outer), True, "transaction(): the outer does")


def pipeline(conn):
    """psycopg 3: without a Sync between them, statements are one transaction."""
    try:
        with conn.pipeline():
            run(conn, "SELECT distlock_acquire('pipeline', '1h')")
            run(conn, "SELECT 1 / 0")
        ok(False, "pipeline: no error")
    except driver.Error as error:
        equal(error.diag.sqlstate, "22012", "pipeline: error after acquire")
    equal(
        value(conn, "SELECT count(*) FROM distlock_leases WHERE name = 'pipeline'"),
        0,
        "pipeline: no lease is left",
    )
    with conn.pipeline() as pipe:
        run(conn, "SELECT distlock_acquire('pipeline', '1h')")
        pipe.sync()
        try:
            run(conn, "SELECT 1 / 0")
            pipe.sync()
        except driver.Error:
            pass
    equal(
        value(
            conn,
            "SELECT distlock_release(name, token) FROM distlock_leases"
            " WHERE name = 'pipeline'",
        ),
        True,
        "pipeline: the lease acquired before the Sync is left",
    )


def another_connection(conn):
    """A lease of scope lease belongs to no connection."""
    with conn.cursor() as cur:
        cur.execute("SELECT distlock_acquire('moving', %s), pg_backend_pid()", (LONG,))
        token, pid = cur.fetchone()
    other, busy = elsewhere(pid)
    if not POOLED:
        conn.close()
    with other.cursor() as cur:
        cur.execute(
            "SELECT distlock_renew('moving', %s) IS NOT NULL,"
            " distlock_check('moving', %s), pg_backend_pid()",
            (token, token),
        )
        renewed, good, other_pid = cur.fetchone()
    ok(other_pid != pid, "another connection: is of another server process", pid)
    equal((renewed, good), (True, True), "another connection: renews")
    equal(release(other, "moving", token), True, "another connection: releases")
    for each in [other, *busy]:
        each.close()


def cancel(conn):
    """A cancelled wait leaves no request and no lease."""
    token = try_lock(conn, "cancel")
    waiter = connect()
    state = []

    def wait():
        try:
            state.append(value(waiter, "SELECT distlock_acquire('cancel')"))
        except driver.Error as error:
            state.append(error.diag.sqlstate)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for_waiter(conn, "cancel")
    waiter.cancel()
    thread.join()
    equal(state, ["57014"], "cancel: of a waiting acquire")
    release(conn, "cancel", token)
    equal(
        value(conn, "SELECT count(*) FROM distlock_leases WHERE name = 'cancel'"),
        0,
        "cancel: the one cancelled has not got it",
    )
    token = try_lock(waiter, "cancel")
    equal(release(conn, "cancel", token), True, "cancel: its connection goes on")
    waiter.close()


def die(scope):
    """Acquire, tell our parent the time just before and the token, be killed."""
    if scope == "session":
        acquire = "distlock_acquire('dying', scope => 'session')"
    else:
        acquire = "distlock_acquire('dying', '1s')"
    print(value(connect(), f"SELECT concat({NOW}, ' ', {acquire})"), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def death(conn, scope):
    """A client that dies is succeeded: at once, or after the TTL."""
    child = subprocess.run(
        [sys.executable, __file__, DRIVER, ROUTE, scope],
        stdout=subprocess.PIPE,
        check=False,
    )
    equal(child.returncode, -signal.SIGKILL, f"death, scope {scope}: killed")
    started, dead = child.stdout.split()
    dead = int(dead)
    token = value(conn, "SELECT distlock_acquire('dying', %s, wait => %s)", LONG, LONG)
    elapsed = value(conn, f"SELECT ({NOW} - %s)::float8", started.decode())
    ok(token > dead, f"death, scope {scope}: another takes over", (dead, token))
    if scope == "lease":
        ok(elapsed > 0.99, "death, scope lease: not before the TTL was over", elapsed)
        error_of(
            "death, scope lease: the old token is lost",
            "LK001",
            conn,
            "SELECT distlock_renew('dying', %s)",
            dead,
        )
    release(conn, "dying", token)


def contend(kind, name, conn):
    """Workers take turns to add one to a counter, read and written apart.

    A wait keeps its server connection busy.  Waiting with all connections of
    the pool, the workers would keep the holder from its own, so, pooled, they
    either wait in short pieces or hold and release in one transaction.
    """
    run(conn, "TRUNCATE turns")
    held = []  # tokens, in the order of holding
    problems = []
    start = threading.Barrier(WORKERS)

    def acquire(mine):
        while True:
            if kind == "pieces":
                token = value(
                    mine,
                    "SELECT distlock_try_acquire(%s, %s, wait => '5ms')",
                    name,
                    LONG,
                )
            else:
                token = value(mine, "SELECT distlock_acquire(%s, %s)", name, LONG)
            if token is not None:
                return token

    def work(worker):
        try:
            mine = connect(autocommit=kind != "transaction")
            start.wait()
            for _ in range(TURNS):
                token = acquire(mine)
                held.append(token)
                turn = value(mine, "SELECT coalesce(max(turn), 0) FROM turns")
                run(
                    mine,
                    "INSERT INTO turns VALUES (%s, %s, %s, pg_backend_pid())",
                    turn + 1,
                    token,
                    worker,
                )
                if not release(mine, name, token):
                    problems.append(f"worker {worker} lost its lease")
                if kind == "transaction":
                    mine.commit()
            mine.close()
        except Exception as error:
            problems.append(f"worker {worker}: {error}")

    contended = value(conn, "SELECT contended FROM distlock_stats")
    workers = [threading.Thread(target=work, args=(i,)) for i in range(WORKERS)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()

    equal(problems, [], f"contention, {kind}: no errors")
    equal(
        value(conn, "SELECT max(turn) FROM turns"),
        WORKERS * TURNS,
        f"contention, {kind}: no turn is lost",
    )
    with conn.cursor() as cur:
        cur.execute("SELECT count(*) FROM turns GROUP BY worker")
        equal(
            cur.fetchall(),
            [(TURNS,)] * WORKERS,
            f"contention, {kind}: each worker had its turns",
        )
        cur.execute("SELECT token FROM turns ORDER BY turn")
        tokens = [token for token, in cur.fetchall()]
    pids = value(conn, "SELECT count(DISTINCT pid) FROM turns")
    ok(
        pids < WORKERS if POOLED else pids == WORKERS,
        f"contention, {kind}: by the right number of server connections",
        pids,
    )
    equal(tokens, sorted(set(tokens)), f"contention, {kind}: tokens increase")
    equal(held, tokens, f"contention, {kind}: in the order of holding")
    ok(
        value(conn, "SELECT contended FROM distlock_stats") > contended,
        f"contention, {kind}: there was some",
    )


def main():
    if len(sys.argv) > 3:
        die(sys.argv[3])
    conn = connect()
    run(conn, "TRUNCATE turns")
    basics(conn)
    if PSYCOPG3:
        binary(conn)
        pipeline(conn)
    several(conn)
    semaphore_and_retry(conn)
    call(conn)
    errors(conn)
    transactions(conn)
    another_connection(connect())
    cancel(conn)
    death(conn, "lease")
    if not POOLED:
        death(conn, "session")
        contend("waiting", "counter", conn)
    contend("pieces", "counter", conn)
    contend("transaction", "counter", conn)
    equal(
        value(conn, "SELECT string_agg(name, ', ') FROM distlock_leases"),
        None,
        "at the end: no lease is left",
    )
    print(f"1..{tests}")
    sys.exit(failures != 0)


main()
