# What the TAP tests of distlock share: a server that preloads the library,
# sessions that can be left waiting, and processes that can be frozen.

package DistlockTest;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(
  crash
  crash_backend
  distlock_node
  freeze
  freeze_server
  freeze_waiter
  freeze_worker
  python_with
  session
  sql_error
  thaw
  wait_for_event
  wait_for_queue
  wait_until_cleared
  worker_pid
  works
);

# A running server with the extension in database postgres.
sub distlock_node
{
	my ($name, %params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(%{ $params{init} // {} });
	$node->append_conf(
		'postgresql.conf', qq{
shared_preload_libraries = 'distlock'
log_statement = none
restart_after_crash = on
} . ($params{conf} // ''));
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION distlock');
	return $node;
}

# What psql says of a statement that has to fail, with SQLSTATE, detail and
# hint.
sub sql_error
{
	my ($node, $sql, $dbname) = @_;
	my $stderr = '';

	$node->psql(
		$dbname // 'postgres', $sql,
		stderr => \$stderr,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return $stderr;
}

sub session
{
	return DistlockTest::Session->new(@_);
}

# Kill the postmaster with SIGKILL, run "meanwhile" if there is any, and start
# the server again.  It refuses to start until init has buried the postmaster
# and the other processes have noticed and ended.
sub crash
{
	my ($node, $meanwhile) = @_;
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;
	my $postmaster = postmaster_pid($node);

	$node->kill9;
	$meanwhile->() if $meanwhile;
	while (kill(0, $postmaster) || !$node->start(fail_ok => 1))
	{
		die 'the server does not start again' if time > $give_up;
		usleep(20_000);
	}
	return;
}

# Kill a server process with SIGKILL: the postmaster starts everything anew.
sub crash_backend
{
	my ($node, $pid) = @_;
	my $log = -s $node->logfile;

	kill 'KILL', $pid;
	$node->wait_for_log(
		qr/all server processes terminated; reinitializing.*ready to accept connections/s, $log);
	return;
}

# Can this command be run?
sub works
{
	my @command = @_;
	my ($out, $err);

	return eval { IPC::Run::run(\@command, '>', \$out, '2>', \$err) };
}

# The first Python that has the module.
sub python_with
{
	my ($module) = @_;

	foreach my $python (grep { defined } $ENV{PYTHON}, '/usr/bin/python3', 'python3')
	{
		return $python if works($python, '-c', "import $module");
	}
	return undef;
}

sub postmaster_pid
{
	my ($node) = @_;

	return (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
}

# Wait until so many requests stand in the queue of a lock.
sub wait_for_queue
{
	my ($node, $name, $n, $dbname) = @_;

	$node->poll_query_until($dbname // 'postgres',
		qq{SELECT count(*) = $n FROM distlock_waiters
		   WHERE name = '$name' AND position > 0})
	  or die "the queue of lock $name never had $n requests";
	return;
}

# Wait until a session waits for this event.
sub wait_for_event
{
	my ($node, $pid, $event) = @_;

	$node->poll_query_until('postgres',
		"SELECT wait_event = '$event' FROM pg_stat_activity WHERE pid = $pid")
	  or die "process $pid never waited for $event";
	return;
}

# A crash may bring back a lease that has just ended.  Wait until it would not.
sub wait_until_cleared
{
	my ($node, $dbname) = @_;

	$node->poll_query_until(
		$dbname // 'postgres', q{
SELECT NOT EXISTS (SELECT FROM distlock_images WHERE (name, token) NOT IN (SELECT name, token FROM distlock_leases))})
	  or die 'images of leases that have ended are not cleared';
	return;
}

# Stop a process, wherever it is.
sub freeze
{
	my ($pid) = @_;
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;

	kill 'STOP', $pid;
	until (slurp_file("/proc/$pid/stat") =~ /\) T /)
	{
		die "process $pid does not stop" if time > $give_up;
		usleep(1_000);
	}
	return;
}

# Stop the postmaster, and all processes that it has started, wherever they are.
# Returns the latter.
sub freeze_server
{
	my ($node) = @_;
	my $postmaster = postmaster_pid($node);
	my @pids;

	freeze($postmaster);
	foreach my $dir (glob '/proc/[0-9]*')
	{
		my $stat = eval { slurp_file("$dir/stat") } // '';

		push @pids, substr($dir, length '/proc/') if $stat =~ /\) [A-Z] $postmaster /;
	}
	kill 'STOP', @pids;
	return @pids;
}

# Stop the process of a session that waits for a lock, so that it holds no
# LWLock: it must be asleep.
sub freeze_waiter
{
	my ($node, $pid) = @_;
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $give_up)
	{
		kill 'STOP', $pid;
		return
		  if $node->safe_psql('postgres',
			"SELECT wait_event_type FROM pg_stat_activity WHERE pid = $pid")
		  eq 'Extension';
		kill 'CONT', $pid;
		usleep(10_000);
	}
	die "process $pid does not wait for a lock";
}

sub thaw
{
	kill 'CONT', @_;
	return;
}

# The process of the background worker, which pg_stat_activity does not show.
sub worker_pid
{
	my ($node) = @_;
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;
	my $postmaster = postmaster_pid($node);

	while (time < $give_up)
	{
		foreach my $dir (glob '/proc/[0-9]*')
		{
			my ($title, $stat) = map { eval { slurp_file("$dir/$_") } // '' } qw(cmdline stat);

			return substr($dir, length '/proc/')
			  if $title =~ /distlock worker/ && $stat =~ /\) [A-Z] $postmaster /;
		}
		usleep(50_000);
	}
	die 'the background worker does not run';
}

# Stop the background worker, so that it holds no LWLock: every partition must
# answer.  A thousand names leave none of the 32 partitions out.
sub freeze_worker
{
	my ($node) = @_;
	my $give_up = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $give_up)
	{
		my $pid = worker_pid($node);
		my $probe = session($node);
		my $free;

		kill 'STOP', $pid;
		$probe->send(q{SELECT count(distlock_check('probe ' || g, 1))
					   FROM generate_series(1, 1000) g});
		$free = $probe->is_done_within(10);
		kill 'CONT', $pid unless $free;
		$probe->get;
		$probe->quit;
		return $pid if $free;
	}
	die 'could not stop the background worker while it is idle';
}

# A psql that runs in the background.
package DistlockTest::Session;

use strict;
use warnings;

use IPC::Run;
use Time::HiRes qw(time);

sub new
{
	my ($class, $node, $dbname) = @_;
	my $self = bless {
		stdin => '',
		stdout => '',
		stderr => '',
		nqueries => 0,
		timer => IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default),
	}, $class;

	$self->{psql} = IPC::Run::start(
		[
			$node->installed_command('psql'),
			'-XAtq', '-v', 'VERBOSITY=verbose', '-d',
			$node->connstr($dbname // 'postgres'), '-f', '-'
		],
		'<', \$self->{stdin},
		'>', \$self->{stdout},
		'2>', \$self->{stderr},
		$self->{timer});
	$self->{pid} = $self->run('SELECT pg_backend_pid()');
	return $self;
}

# The server process of the session.
sub pid
{
	my ($self) = @_;

	return $self->{pid};
}

# Start a statement and do not wait for it.
sub send
{
	my ($self, $sql) = @_;
	my $mark = 'end of statement ' . ++$self->{nqueries};

	$self->{stdout} = $self->{stderr} = '';
	$self->{stdin} .= "$sql\n;\n\\echo $mark\n\\warn $mark\n";
	eval {
		$self->{psql}->pump_nb
		  while length $self->{stdin} && $self->{psql}->pumpable;
	};
	return;
}

sub is_done
{
	my ($self) = @_;
	my $mark = "end of statement $self->{nqueries}\n";

	return $self->{stdout} =~ /$mark/ && $self->{stderr} =~ /$mark/;
}

# Take in what has come by now.  Returns false when psql has ended.
sub look
{
	my ($self) = @_;

	return $self->{psql}->pumpable && eval { $self->{psql}->pump_nb; 1 };
}

# The end of psql counts as the end of the statement.
sub is_done_within
{
	my ($self, $seconds) = @_;

	$self->{timer}->start($seconds);
	until ($self->is_done)
	{
		return 0 if $self->{timer}->is_expired;
		last unless $self->{psql}->pumpable && eval { $self->{psql}->pump; 1 };
	}
	return 1;
}

# Wait for the statement; returns its output and its errors.
sub get
{
	my ($self) = @_;

	die "statement timed out: $self->{stdout} $self->{stderr}"
	  unless $self->is_done_within($PostgreSQL::Test::Utils::timeout_default);
	foreach my $output (qw(stdout stderr))
	{
		$self->{$output} =~ s/end of statement $self->{nqueries}\n//;
		chomp $self->{$output};
	}
	return ($self->{stdout}, $self->{stderr});
}

# Run a statement that has to succeed; returns its output.
sub run
{
	my ($self, $sql) = @_;

	$self->send($sql);
	return $self->result;
}

# The output of a statement that has to succeed.
sub result
{
	my ($self) = @_;
	my ($stdout, $stderr) = $self->get;

	die "statement failed: $stderr" if $stderr =~ /(ERROR|FATAL|PANIC): |lost/;
	return $stdout;
}

# The error of a statement, or an empty string.
sub error
{
	my ($self) = @_;

	return ($self->get)[1];
}

sub quit
{
	my ($self) = @_;

	$self->{stdin} .= "\\q\n";
	eval { $self->{psql}->finish };
	return;
}

# Kill the client.
sub kill_client
{
	my ($self) = @_;

	$self->{psql}->signal('KILL');
	eval { $self->{psql}->finish };
	return;
}

1;
