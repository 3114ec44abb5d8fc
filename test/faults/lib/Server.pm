package Server;

# One PostgreSQL server of a run: made, started, hurt, and started again.
#
# Its folder has a Unix socket, the data, the log, and node.conf, which the
# data's postgresql.conf includes: what differs from one server to the next is
# there, so that it stays when the data is copied from another.  "clock" is how
# many seconds its wall clock is ahead, see wall_clock.c.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename;
use POSIX qw(WNOHANG);
use Time::HiRes qw(usleep);
use Faults;
use Link;

my $wall_clock = abs_path(dirname(__FILE__) . '/../wall_clock.so');

sub new
{
	my ($class, $name) = @_;
	my $self = bless { name => $name, dir => "$Faults::dir/$name", orphans => [], settings => {} }, $class;

	mkdir $self->{dir} or die "$self->{dir}: $!\n";
	$self->{data} = "$self->{dir}/data";
	$self->{log} = "$self->{dir}/log";
	$self->{socket} = "$self->{dir}/.s.PGSQL.5432";
	$self->step_clock(0);
	return $self;
}

# ---- Settings and data ----

# Settings of this server alone; undef takes one away.
sub set
{
	my ($self, %settings) = @_;

	%{ $self->{settings} } = (%{ $self->{settings} }, %settings);
	open my $conf, '>', "$self->{dir}/node.conf" or die "$self->{dir}: $!";
	# PGPORT may say another port.
	print {$conf} "port = 5432\nunix_socket_directories = '$self->{dir}'\n";
	foreach my $name (sort keys %{ $self->{settings} })
	{
		print {$conf} "$name = '$self->{settings}{$name}'\n" if defined $self->{settings}{$name};
	}
	close $conf or die "$self->{dir}: $!";
	kill 'HUP', $self->{postmaster} if $self->{postmaster};
	return;
}

sub init
{
	my ($self, $settings) = @_;

	run_to_end("$self->{dir}/initdb.log", 'initdb', '-D', $self->{data}, qw(-U postgres -A trust -E UTF8 --no-locale -N))
	  or die "initdb failed, see $self->{dir}/initdb.log\n";
	open my $conf, '>>', "$self->{data}/postgresql.conf" or die "$self->{dir}: $!";
	print {$conf} $settings, "include = '../node.conf'\n";
	close $conf or die "$self->{dir}: $!";
	$self->set;
	return;
}

# Make this server a standby of another, through the network: with what it has,
# if it has anything, or with a copy.
sub follow
{
	my ($self, $primary, $anew) = @_;
	my $log = "$self->{dir}/follow.log";
	my @done;

	if ($anew)
	{
		system('rm', '-rf', $self->{data});
		@done = ('pg_basebackup', '-D', $self->{data}, '-h', $primary->{dir}, qw(-p 5432 -U postgres -X stream -c fast -N));
	}
	else
	{
		@done = ('pg_rewind', '-D', $self->{data}, '-N',
			"--source-server=host=$primary->{dir} port=5432 user=postgres dbname=postgres");
	}
	run_to_end($log, @done) or die "$done[0] failed:\n" . substr(slurp($log), -1000);
	open my $signal, '>', "$self->{data}/standby.signal" or die "$self->{data}: $!";
	close $signal;
	$self->set(
		synchronous_standby_names => undef,
		primary_conninfo => "host=127.0.0.1 port=" . $primary->{replication}->port
		  . " user=postgres application_name=$self->{name}");
	return;
}

# Step the wall clock of this server to be off by so many seconds.
sub step_clock
{
	my ($self, $seconds) = @_;

	# In place: the server has it mapped.
	open my $file, -e "$self->{dir}/clock" ? '+<' : '>', "$self->{dir}/clock" or die "$self->{dir}: $!";
	syswrite($file, pack 'q', $seconds) == 8 or die "$self->{dir}: $!";
	close $file or die "$self->{dir}: $!";
	return;
}

# ---- Processes ----

# The processes that this server has started and whose title matches.
sub children
{
	my ($self, $title) = @_;

	return if !$self->{postmaster};
	return grep { (process($_))[1] == $self->{postmaster} && slurp("/proc/$_/cmdline") =~ $title } pids();
}

sub backends
{
	my ($self) = @_;

	return $self->children(qr/^postgres: (?!walsender).*\[local\]/);
}

sub worker
{
	my ($self) = @_;

	return $self->children(qr/distlock worker/);
}

sub is_child
{
	my ($self, $pid) = @_;
	my ($state, $parent) = process($pid);

	return $self->{postmaster} && $parent == $self->{postmaster} && $state ne 'Z';
}

# ---- Up and down ----

sub is_up
{
	my ($self) = @_;

	return !$self->{down};
}

sub start
{
	my ($self) = @_;
	my %env = (LD_PRELOAD => $wall_clock, WALL_CLOCK => "$self->{dir}/clock");

	-e $wall_clock or die "$wall_clock has not been built\n";
	$self->{down} //= { since => now() };
	$self->{down}{log} = -s $self->{log} // 0;
	$self->{down}{starting} = 1;
	$self->{postmaster} = run_program($self->{log}, { env => \%env }, 'postgres', '-D', $self->{data});
	return;
}

# Look after a server that is not up, and start it again; returns whether it is up.
sub see_to
{
	my ($self) = @_;
	my $down = $self->{down} // return 1;

	if ($self->{postmaster} && waitpid($self->{postmaster}, WNOHANG) == $self->{postmaster})
	{
		$self->{postmaster} = undef;
		$down->{starting} = 0;
		$down->{restarting} = 0;
	}
	if (!$self->{postmaster})
	{
		# Nothing is removed, and nobody hurried: it refuses as long as one of
		# the processes of before is there.
		$self->start if !$self->has_orphans;
		return 0;
	}
	my $log = slurp($self->{log}, $down->{log});
	my $ready = qr/ready to accept (?:read-only )?connections/;
	my $mark = $down->{restarting} ? qr/reinitializing.*$ready/s : $ready;
	# A process that was about to end anyway is not missed.
	my $unharmed =
	  $down->{restarting} && now() > $down->{since} + 15 && $log !~ /was terminated by signal 9/;
	if (($down->{starting} || $down->{restarting}) && ($unharmed || $log =~ $mark))
	{
		end_fault($down->{fault}) if $down->{fault};
		$self->{down} = undef;
		return 1;
	}
	die "the server does not come up again, see $self->{log}\n" if now() > $down->{since} + $Faults::patience;
	return 0;
}

sub has_orphans
{
	my ($self) = @_;

	@{ $self->{orphans} } = grep { !gone($_) } @{ $self->{orphans} };
	return scalar @{ $self->{orphans} };
}

# Kill a child; the postmaster restarts everything.
sub kill_child
{
	my ($self, $kind, @pids) = @_;
	my $pid = any_of(@pids) // return;

	$self->{down} = { since => now(), log => -s $self->{log}, restarting => 1 };
	$self->{down}{fault} = begin_fault($kind, $pid);
	if (!$self->is_child($pid) || !kill 'KILL', $pid)
	{
		end_fault($self->{down}{fault});
		$self->{down} = undef;
	}
	return;
}

# End the postmaster; see_to() starts it again.
sub end_postmaster
{
	my ($self, $signal, $kind) = @_;

	$self->{orphans} = [ $self->children(qr/./) ];
	$self->{down} = { since => now(), log => -s $self->{log} };
	$self->{down}{fault} = begin_fault($kind, $self->{postmaster}) if $kind;
	kill $signal, $self->{postmaster};
	return;
}

# End it, and do not start it again.
sub end
{
	my ($self, $signal) = @_;
	my $pid = $self->{postmaster};

	end_fault($self->{down}{fault}) if $self->{down} && $self->{down}{fault};
	$self->end_postmaster($signal) if $pid;
	$self->{postmaster} = $self->{down} = undef;
	wait_until(
		'end of the server',
		sub {
			$pid = undef if $pid && waitpid($pid, WNOHANG) == $pid;
			return !$pid && !$self->has_orphans;
		});
	return;
}

sub wait_until_up
{
	my ($self) = @_;

	wait_until("start of server $self->{name}", sub { $self->see_to });
	return;
}

sub ask
{
	my ($self, $sql) = @_;

	return ask_server($self->{dir}, 5432, $sql);
}

1;
