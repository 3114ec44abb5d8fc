/*
 * An application that takes leases with JDBC.
 *
 * usage: java -cp postgresql.jar:DIRECTORY JdbcApp {direct|pooled}
 *
 * Connects by the environment (PGHOST, a directory of sockets, PGPORT, PGUSER,
 * PGDATABASE), directly or to a pooler in transaction mode, and prints TAP.  The
 * table turns must be there; t/020_drivers.pl makes it.
 *
 * A pooler lends out a server connection for one transaction at a time.  So,
 * pooled, nothing here relies on having the same one again: no session scope,
 * and no prepared statement of the server.
 */

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.Socket;
import java.net.SocketAddress;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;
import java.sql.Array;
import java.sql.BatchUpdateException;
import java.sql.CallableStatement;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Timestamp;
import java.sql.Types;
import java.util.Arrays;
import java.util.Objects;
import java.util.Properties;
import javax.net.SocketFactory;

import org.postgresql.util.PGInterval;
import org.postgresql.util.PSQLException;

public class JdbcApp {
	static final String LONG = "60 seconds";	// a TTL that no test comes to the end of
	static boolean pooled;

	/* ---- TAP ---- */

	static int tests = 0;
	static int failures = 0;

	static void ok(boolean good, String name, Object note) {
		System.out.println((good ? "ok " : "not ok ") + ++tests + " - " + name);
		if (!good) {
			failures++;
			System.out.println("# " + String.valueOf(note).replace("\n", "\n# "));
		}
	}

	static void equal(Object got, Object expected, String name) {
		ok(Objects.deepEquals(got, expected), name, "got " + got + ", expected " + expected);
	}

	/* Run a query that has to fail; returns its error. */
	static PSQLException errorOf(String name, String sqlstate, Connection conn,
			String query, Object... args) throws SQLException {
		try {
			Object result = value(conn, query, args);
			ok(false, name, "no error, but " + result);
		} catch (PSQLException error) {
			equal(error.getSQLState(), sqlstate, name);
			return error;
		}
		return null;
	}

	/* ---- Database ---- */

	/* The driver knows of TCP only, which anybody on this machine may use. */
	static class LocalSocket extends Socket {
		private SocketChannel channel;

		@Override
		public void connect(SocketAddress address, int timeout) throws IOException {
			channel = SocketChannel.open(UnixDomainSocketAddress.of(
				System.getenv("PGHOST") + "/.s.PGSQL." + System.getenv("PGPORT")));
		}

		@Override
		public InputStream getInputStream() {
			return Channels.newInputStream(channel);
		}

		@Override
		public OutputStream getOutputStream() {
			return Channels.newOutputStream(channel);
		}

		@Override
		public void close() throws IOException {
			channel.close();
		}

		@Override public boolean isClosed() { return channel != null && !channel.isOpen(); }
		@Override public boolean isConnected() { return channel != null; }
		@Override public void setTcpNoDelay(boolean on) { }
		@Override public void setKeepAlive(boolean on) { }
		@Override public void setSoTimeout(int timeout) { }
		@Override public int getSoTimeout() { return 0; }
		@Override public int getSendBufferSize() { return 8192; }
	}

	public static class LocalSockets extends SocketFactory {
		@Override public Socket createSocket() { return new LocalSocket(); }

		@Override public Socket createSocket(String host, int port) {
			throw new UnsupportedOperationException();
		}

		@Override public Socket createSocket(String host, int port, InetAddress local, int localPort) {
			throw new UnsupportedOperationException();
		}

		@Override public Socket createSocket(InetAddress host, int port) {
			throw new UnsupportedOperationException();
		}

		@Override public Socket createSocket(InetAddress host, int port, InetAddress local, int localPort) {
			throw new UnsupportedOperationException();
		}
	}

	static Connection connect(String... options) throws SQLException {
		Properties properties = new Properties();

		properties.setProperty("user", System.getenv("PGUSER"));
		properties.setProperty("socketFactory", LocalSockets.class.getName());
		properties.setProperty("sslmode", "disable");
		properties.setProperty("gssEncMode", "disable");
		/* -1: prepare every statement at once, binary; 0: never */
		properties.setProperty("prepareThreshold", pooled ? "0" : "-1");
		for (int i = 0; i < options.length; i += 2)
			properties.setProperty(options[i], options[i + 1]);
		return DriverManager.getConnection(
			"jdbc:postgresql://localhost/" + System.getenv("PGDATABASE"), properties);
	}

	static PreparedStatement prepare(Connection conn, String query, Object... args)
			throws SQLException {
		PreparedStatement statement = conn.prepareStatement(query);

		for (int i = 0; i < args.length; i++) {
			if (args[i] instanceof String[])
				statement.setArray(i + 1, conn.createArrayOf("text", (String[]) args[i]));
			else
				statement.setObject(i + 1, args[i]);
		}
		return statement;
	}

	/* The first column of the only row; an array as a list. */
	static Object value(Connection conn, String query, Object... args) throws SQLException {
		try (PreparedStatement statement = prepare(conn, query, args);
				ResultSet rows = statement.executeQuery()) {
			if (!rows.next())
				throw new IllegalStateException("no row");
			Object value = rows.getObject(1);
			return value instanceof Array ?
				Arrays.asList((Object[]) ((Array) value).getArray()) : value;
		}
	}

	static Object tryLock(Connection conn, String name) throws SQLException {
		return value(conn, "SELECT distlock_try_acquire(?, ?)", name, new PGInterval(LONG));
	}

	static Object release(Connection conn, String name, Object token) throws SQLException {
		return value(conn, "SELECT distlock_release(?, ?)", name, token);
	}

	static Object count(Connection conn, String what) throws SQLException {
		return value(conn, "SELECT count(*)::integer FROM " + what);
	}

	/* ---- Tests ---- */

	/* Acquire, renew, check, release, with the types the driver sends. */
	static void basics(Connection conn) throws SQLException {
		try (Connection other = connect(); Connection untyped = connect("stringtype", "unspecified")) {
			Object token = tryLock(conn, "basics");
			ok(token instanceof Long && (Long) token > 0, "acquire: the token is a long", token);
			equal(tryLock(other, "basics"), null, "try_acquire: null while another holds it");
			equal(value(conn, "SELECT distlock_check(?, ?)", "basics", token), true, "check: true");
			ok(value(conn, "SELECT distlock_renew(?, ?, ?::interval)", "basics", token, "1 hour")
				instanceof Timestamp, "renew: a timestamp; a string cast to interval", "");
			equal(release(conn, "basics", token), true, "release: true");
			equal(release(conn, "basics", token), false, "release again: false");

			/* Strings go out as varchar unless told otherwise. */
			errorOf("a string is no interval", "42883", conn,
				"SELECT distlock_acquire(?, ?)", "basics", LONG);
			token = value(untyped, "SELECT distlock_acquire(?, ?, wait => ?)", "basics", LONG, "1s");
			ok(token instanceof Long, "stringtype=unspecified: strings as intervals", token);
			release(conn, "basics", token);

			token = value(conn,
				"SELECT distlock_acquire(name => ?, ttl => ?, wait => ?, mode => ?, scope => ?," +
				" holder => ?, durable => ?, max_holders => ?, request_id => ?, advisory_key => ?::bigint)",
				"basics", new PGInterval(LONG), new PGInterval("1 second"), "exclusive", "lease",
				"Zo\u00eb", false, 2, "request jdbc", null);
			equal(value(other,
				"SELECT distlock_acquire(?, ?, holder => ?, durable => ?, max_holders => ?, request_id => ?)",
				"basics", new PGInterval(LONG), "Zo\u00eb", false, 2, "request jdbc"), token,
				"with all arguments: repeated from another connection, the same token");
			equal(value(conn, "SELECT holder FROM distlock_leases WHERE token = ?", token), "Zo\u00eb",
				"with all arguments: the holder given");
			release(conn, "basics", token);

			long last = 0;
			boolean rising = true;
			for (int i = 0; i < 8; i++) {
				long next = (Long) tryLock(conn, "basics");
				rising = rising && next > last;
				last = next;
				release(conn, "basics", next);
			}
			ok(rising, "the same statement, many times: tokens increase", last);
		}
	}

	static Object held(Connection conn, Object token) throws SQLException {
		return value(conn,
			"SELECT array_agg(name ORDER BY name) FROM distlock_leases WHERE token = ?", token);
	}

	/* Several locks: the names are an array. */
	static void several(Connection conn) throws SQLException {
		String[] names = {"several b", "several, a", "several \"c\"", "several b"};

		try (Connection other = connect()) {
			Object token = value(conn, "SELECT distlock_acquire_all(?, ?)", names, new PGInterval(LONG));
			Object[] sorted = Arrays.stream(names).distinct().toArray();
			equal(value(conn, "SELECT array_agg(name) @> ? AND count(*) = ? FROM distlock_leases" +
				" WHERE token = ?", names, sorted.length, token), true,
				"several: a lock for each name of the array");
			equal(value(other, "SELECT distlock_try_acquire_all(?)",
				(Object) new String[] {"free", names[0]}), null,
				"several: null while another holds one");
			equal(value(conn, "SELECT distlock_check_all(?, ?)", names, token), true,
				"several: check_all");
			ok(value(conn, "SELECT distlock_renew_all(?, ?)", names, token) instanceof Timestamp,
				"several: renew_all", "");
			equal(release(conn, names[0], token), true, "several: one released alone");
			equal(value(conn, "SELECT distlock_release_all(?, ?)", names, token), false,
				"several: release_all, one was not held any more");
			equal(held(conn, token), null, "several: but all are released");

			try (PreparedStatement statement = conn.prepareStatement(
					"SELECT distlock_acquire_all(names => ?, ttl => ?)")) {
				statement.setArray(1, conn.createArrayOf("varchar", new String[] {"v 1", "v 2"}));
				statement.setObject(2, new PGInterval(LONG));
				try (ResultSet rows = statement.executeQuery()) {
					rows.next();
					token = rows.getLong(1);
				}
			}
			equal(held(conn, token), Arrays.asList("v 1", "v 2"), "several: varchar[]");
			value(conn, "SELECT distlock_release_all(ARRAY[?, ?], ?)", "v 1", "v 2", token);
			equal(held(conn, token), null, "several: an array of parameters");
			errorOf("several: 22023 for an empty array", "22023", conn,
				"SELECT distlock_acquire_all(?)", (Object) new String[] {});
			errorOf("several: 22004 for null among the names", "22004", conn,
				"SELECT distlock_acquire_all(?)", (Object) new String[] {"a", null});
			errorOf("several: an array of names is no name", "42883", conn,
				"SELECT distlock_acquire(?)", (Object) new String[] {"a", "b"});
		}
	}

	/* CALL returns the argument that is INOUT, in a row or as a parameter. */
	static void call(Connection conn) throws SQLException {
		Object token = value(conn, "CALL distlock_lock(?, NULL, ?)", "call", new PGInterval(LONG));

		ok(token instanceof Long && (Long) token > 0, "CALL: the token is a long", token);
		equal(value(conn, "CALL distlock_watch_next(name => ?, token => NULL)", "call"), token,
			"CALL: watch_next, by names");
		try (CallableStatement statement = conn.prepareCall("CALL distlock_watch_next(?, ?, ?)")) {
			statement.setString(1, "call");
			statement.setObject(2, token);
			statement.registerOutParameter(2, Types.BIGINT);
			statement.setObject(3, new PGInterval("0.001 seconds"));
			statement.execute();
			equal(statement.getLong(2), token, "CALL: watch_next, token in and out");
		}
		try (Connection other = connect()) {
			errorOf("CALL: 55P03 when the wait is over", "55P03", other,
				"CALL distlock_lock(name => ?, wait => ?)", "call", new PGInterval("0.01 seconds"));
			release(conn, "call", token);
			equal(value(other, "CALL distlock_watch_next(?, ?)", "call", token), null,
				"CALL: watch_next, null for a lock that is free");
		}
		try (CallableStatement statement = conn.prepareCall("CALL distlock_lock(?, ?, ?)")) {
			statement.setString(1, "call");
			statement.setNull(2, Types.BIGINT);
			statement.registerOutParameter(2, Types.BIGINT);
			statement.setObject(3, new PGInterval(LONG));
			statement.execute();
			equal(release(conn, "call", statement.getLong(2)), true, "CALL: the token as a parameter");
		}

		try (Connection txn = connect()) {
			txn.setAutoCommit(false);
			value(txn, "INSERT INTO turns VALUES (0) RETURNING turn");
			value(txn, "CALL distlock_lock('call', NULL, '1h')");
			errorOf("CALL, autocommit off: an error behind it", "22012", txn, "SELECT 1 / 0");
			txn.rollback();
		}
		equal(count(conn, "turns"), 0, "CALL, autocommit off: what came before is not committed");
		equal(count(conn, "distlock_leases WHERE name = 'call'"), 0,
			"CALL, autocommit off: no lease is left");

		/* The driver sends a batch as a pipeline. */
		try (Statement statement = conn.createStatement()) {
			statement.addBatch("INSERT INTO turns VALUES (0)");
			statement.addBatch(
				"DO $$ DECLARE token bigint; BEGIN CALL distlock_lock('call', token, '1h'); END $$");
			statement.addBatch("INSERT INTO turns VALUES (1 / 0)");
			statement.executeBatch();
			ok(false, "CALL, batch: no error", "");
		} catch (BatchUpdateException error) {
			equal(error.getSQLState(), "22012", "CALL, batch: the error");
		}
		equal(count(conn, "turns"), 0, "CALL, batch: what came before is not committed");
		equal(count(conn, "distlock_leases WHERE name = 'call'"), 0, "CALL, batch: no lease is left");
	}

	static void errors(Connection conn) throws SQLException {
		Object token = tryLock(conn, "errors");

		try (Connection other = connect()) {
			PSQLException error = errorOf("error: 55P03 when the wait is over", "55P03", other,
				"SELECT distlock_acquire('errors', wait => '10ms')");
			ok(error.getServerErrorMessage().getDetail().contains(token.toString()),
				"55P03: the detail names the token", error);
		}
		release(conn, "errors", token);
		errorOf("error: LK001 from renew of a lost lease", "LK001", conn,
			"SELECT distlock_renew(?, ?)", "errors", token);
		errorOf("error: 22004 for null", "22004", conn, "SELECT distlock_acquire(?)",
			(Object) null);
	}

	/* A cancelled wait leaves no request and no lease. */
	static void cancel(Connection conn) throws Exception {
		Object token = tryLock(conn, "cancel");

		try (Connection waiter = connect(); Statement statement = waiter.createStatement()) {
			statement.setQueryTimeout(1);
			statement.execute("CALL distlock_lock('cancel')");
			ok(false, "query timeout: no error", "");
		} catch (SQLException error) {
			equal(error.getSQLState(), "57014", "query timeout: of a waiting CALL");
		}
		equal(count(conn, "distlock_waiters WHERE name = 'cancel'"), 0, "query timeout: nobody waits");
		equal(release(conn, "cancel", token), true, "query timeout: the holder holds it");
	}

	public static void main(String[] args) throws Exception {
		pooled = args[0].equals("pooled");
		try (Connection conn = connect()) {
			value(conn, "WITH gone AS (DELETE FROM turns RETURNING 1) SELECT count(*) FROM gone");
			basics(conn);
			several(conn);
			call(conn);
			errors(conn);
			cancel(conn);
			equal(count(conn, "distlock_leases"), 0, "at the end: no lease is left");
		}
		System.out.println("1.." + tests);
		System.exit(failures == 0 ? 0 : 1);
	}
}
