package Faults;

# What the runs of the fault test share: the notes that the checker reads,
# processes that are started, stopped and ended, and the clients.
#
# Signals go to processes that were started here, or by a server that was
# started here, and to no other.

use strict;
use warnings;

use Exporter 'import';
use POSIX qw(WNOHANG);
use Time::HiRes qw(CLOCK_MONOTONIC clock_gettime usleep);

our @EXPORT = qw(now any_of slurp begin_fault end_fault
  pids process gone run_program run_to_end wait_until pass ask_server
  stop_process see_to_stopped is_stopped start_clients see_to_clients end_clients clients kill_client
  make_tables look_at_end judge clean_up_processes);

our $patience = 120;            # s until something that has to happen must have

our $max_leases = 1000;         # of a server

# How many clients of each workload.
our %workloads = (
	exclusive => 2, shared => 3, semaphore => 3, request => 2,
	several => 2, guard => 2, file => 2,
	takeover0 => 2, takeover1 => 2, takeover2 => 2, takeover3 => 2,
	transaction => 3, lead => 2, watch => 2,
	operator => 1, forced => 3, protect => 2, prepared => 3);

our $dir;                       # where the notes are; to be set
our $tick = sub { };            # what to see to while waiting; may be set

my $nfaults = 0;
my @complaints;
my %client;                     # pid -> number and workload
my $ending;                     # have they been told to end?
my $nclients = 0;
my %stopped;                    # pid -> when to go on, the fault, and how to know whether it is ours

sub now
{
	return clock_gettime(CLOCK_MONOTONIC);
}

sub any_of
{
	return $_[ rand @_ ];
}

sub slurp
{
	my ($path, $offset) = @_;

	open my $file, '<', $path or return '';
	seek $file, $offset, 0 if $offset;
	local $/;
	return <$file> // '';
}

sub wait_until
{
	my ($what, $condition, $limit) = @_;
	my $give_up = now() + ($limit // $patience);

	until ($condition->())
	{
		die "$what: not within ", $limit // $patience, " s\n" if now() > $give_up;
		$tick->();
		usleep(20_000);
	}
	return;
}

# Let some seconds go by.
sub pass
{
	my ($seconds) = @_;
	my $end = now() + $seconds;

	wait_until('time', sub { now() >= $end });
	return;
}

# ---- Notes ----

sub append
{
	my ($name, @fields) = @_;

	open my $file, '>>', "$dir/$name" or die "$dir/$name: $!";
	print {$file} join("\t", @fields), "\n";
	close $file or die "$dir/$name: $!";
	return;
}

# Note that a fault begins, before it does; or that it has begun.
sub begin_fault
{
	my ($kind, $target, $since) = @_;

	append('faults.log', int(($since // now()) * 1e6), 'begin', ++$nfaults, $kind, $target // '');
	return $nfaults;
}

sub end_fault
{
	my ($id) = @_;

	append('faults.log', int(now() * 1e6), 'end', $id);
	return;
}

# Something is wrong with the run itself, or with a server.
sub complain
{
	push @complaints, @_;
	return;
}

# ---- Processes ----

sub pids
{
	return map { m{^/proc/(\d+)$} ? $1 : () } glob '/proc/[0-9]*';
}

# State and parent of a process.
sub process
{
	my ($pid) = @_;

	return slurp("/proc/$pid/stat") =~ /\) ([A-Za-z]) (\d+) / ? ($1, $2) : ('gone', 0);
}

sub gone
{
	my ($pid) = @_;

	return (process($pid))[0] =~ /gone|Z|X/;
}

# Start a program; its standard output and error go to a file.  With a group of
# its own it can be signalled together with its children.
sub run_program
{
	my ($log, $option, @command) = @_;
	my $pid = fork // die "could not fork: $!";

	if ($pid == 0)
	{
		setpgrp 0, 0 if $option->{group};
		@ENV{ keys %{ $option->{env} } } = values %{ $option->{env} } if $option->{env};
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', $log;
		open STDERR, '>&', \*STDOUT;
		exec @command or POSIX::_exit(127);
	}

	# The child does the same; whoever signals the group must find it.
	setpgrp $pid, $pid if $option->{group};
	return $pid;
}

# Run a program to its end; returns whether it succeeded.
sub run_to_end
{
	my ($log, @command) = @_;
	my $pid = run_program($log, {}, @command);
	my $status;

	wait_until($command[0], sub { waitpid($pid, WNOHANG) == $pid && defined($status = $?) });
	return $status == 0;
}

# Stop a process for some seconds.  Whether it is ours is looked at right before.
sub stop_process
{
	my ($kind, $pid, $target, $seconds, $is_ours) = @_;
	my $fault = begin_fault($kind, $target);

	kill 'STOP', $pid if $is_ours->();
	$stopped{$pid} = { until => now() + $seconds, fault => $fault };
	return;
}

# Let those go on whose time it is, or all, or one.
sub see_to_stopped
{
	my ($which) = @_;

	foreach my $pid (keys %stopped)
	{
		next if $which ? $which ne 'all' && $which ne $pid : now() < $stopped{$pid}{until};

		# Whoever is an orphan by now was a child when it was stopped.  It may not
		# have come to its stop yet.
		kill 'CONT', $pid if $pid < 0 || !gone($pid);
		end_fault($stopped{$pid}{fault});
		delete $stopped{$pid};
	}
	return;
}

# The note of what a process is stopped for, to be changed.
sub is_stopped
{
	my ($pid) = @_;

	return $stopped{$pid};
}

# ---- Clients ----

# Start a client; it connects by $env.
sub start_client
{
	my ($program, $workload, $env) = @_;
	my $number = ++$nclients;
	my $pid =
	  run_program("$dir/clients.err", { env => $env }, $program, $number, $workload, int rand 1e9, $dir);

	$client{$pid} = { number => $number, workload => $workload, program => $program, env => $env };
	return;
}

# Start all of them; $way tells how the nth client connects.
sub start_clients
{
	my ($program, $way) = @_;
	my $n = 0;

	foreach my $workload (sort keys %workloads)
	{
		start_client($program, $workload, $way->($n++)) foreach 1 .. $workloads{$workload};
	}
	return;
}

# pid -> number, workload
sub clients
{
	return \%client;
}

# A client that ends by itself is a failure of this test.
sub see_to_clients
{
	return if $ending;
	foreach my $pid (keys %client)
	{
		next if waitpid($pid, WNOHANG) != $pid;
		complain("client $client{$pid}{number} ended with status $?");
		delete $client{$pid};
	}
	return;
}

# Kill one and start another like it.
sub kill_client
{
	my $pid = any_of(sort { $a <=> $b } keys %client);
	my $fault = begin_fault('kill-client', $client{$pid}{number});
	my $gone;

	kill 'KILL', $pid;
	waitpid $pid, 0;
	end_fault($fault);
	see_to_stopped($pid);
	$gone = delete $client{$pid};
	start_client(@$gone{qw(program workload env)});
	return;
}

sub end_clients
{
	my $give_up = now() + $patience;

	see_to_clients();
	$ending = 1;
	kill 'TERM', keys %client;
	while (%client)
	{
		foreach my $pid (keys %client)
		{
			if (waitpid($pid, WNOHANG) == $pid)
			{
				complain("client $client{$pid}{number} ended with status $?") if $?;
				delete $client{$pid};
			}
			elsif (now() > $give_up)
			{
				complain("client $client{$pid}{number} did not end");
				kill 'KILL', $pid;
				waitpid $pid, 0;
				delete $client{$pid};
			}
		}
		$tick->();
		usleep(20_000);
	}
	return;
}

# ---- The server ----

# The answer to a query, or undef.
sub ask_server
{
	my ($host, $port, $sql) = @_;

	open my $psql, '-|', 'timeout', $patience, 'psql', '-XAtq', '-F', "\t", '-v', 'ON_ERROR_STOP=1',
	  '-h', $host, '-p', $port, '-U', 'postgres', '-d', 'postgres', '-c', $sql
	  or die "could not run psql: $!";
	local $/;
	my $output = <$psql> // '';
	return close $psql ? $output =~ s/\n\z//r : undef;
}

sub make_tables
{
	my ($server) = @_;

	defined $server->ask(
		q{CREATE EXTENSION distlock;
		  CREATE TABLE counters (name text, n integer);
		  INSERT INTO counters SELECT 'e' || g, 0 FROM generate_series(0, 2) g;
		  INSERT INTO counters SELECT p || g, 0 FROM unnest('{f,x}'::text[]) p, generate_series(0, 1) g;
		  CREATE TABLE protected AS SELECT 'q' || g AS name, 0 AS n FROM generate_series(0, 1) g;
		  SELECT distlock_protect('protected', '{name}');
		  CREATE TABLE committed (name text, n integer, token bigint, client integer, op integer)})
	  or die "could not make the tables\n";
	return;
}

# Nothing must be left when all leases have run out.  Ask until it is so.
sub look_at_end
{
	my ($server, @logs) = @_;
	my %question = (
		leases => 'SELECT count(*) FROM distlock_leases',
		waiters => 'SELECT count(*) FROM distlock_waiters',
		'not cleared' => 'SELECT count(*) FROM distlock_images',
		prepared => 'SELECT count(*) FROM pg_prepared_xacts',
		missing => "SELECT $max_leases - count(distlock_try_acquire('all ' || g, scope => 'session'))"
		  . " FROM generate_series(1, $max_leases) g");
	my %table = (
		committed => 'committed',
		counters => '(SELECT * FROM counters UNION ALL SELECT * FROM protected) t');
	my $log = join '', map { slurp($_) } @logs;
	my $give_up = now() + 30;

	foreach my $name (sort keys %question)
	{
		my $value;

		until (defined($value = $server->ask($question{$name})) && $value eq '0')
		{
			last if now() > $give_up;
			usleep(200_000);
		}
		append('final.log', $name, $value // 'error');
	}
	foreach my $table (sort keys %table)
	{
		my $rows = $server->ask("SELECT * FROM $table{$table}");

		complain("could not read table $table") if !defined $rows;
		append($table, $_) foreach split /\n/, $rows // '';
	}
	foreach my $what (qw(statement lock idle-in-transaction))
	{
		my $count = () = $log =~ /due to $what timeout/g;

		append('final.log', "$what timeouts", $count);
	}

	# Patroni may remove the data of a server that is starting.
	$log =~ s/^.*PANIC:  could not locate a valid checkpoint record\n.*\bstartup process .*signal 6.*\n//mg;
	append('final.log', 'server', $_)
	  foreach @complaints, $log =~ /^(.*(?:TRAP: |PANIC: | XX[0-9A-Z]{3} (?!wal|startup|postmaster).*(?:ERROR|FATAL): |signal (?:4|6|7|8|11)\b).*)$/mg;
	return;
}

# ---- The end ----

# Whatever happens, nothing of ours goes on.
sub clean_up_processes
{
	kill 'CONT', keys %stopped;
	kill 'KILL', keys %client;
	waitpid $_, 0 foreach keys %client;
	return;
}

# Have the history of so many minutes judged; returns the exit status, and removes
# the notes if nothing is wrong.
sub judge
{
	my ($here, $minutes, $keep) = @_;

	print slurp("$dir/clients.err");
	if (system($^X, "$here/check", '--least', $minutes, $dir) == 0 && !$keep)
	{
		system('rm', '-rf', $dir);
		return 0;
	}
	print "logs are in $dir\n";
	return $? == 0 ? 0 : 1;
}

1;
