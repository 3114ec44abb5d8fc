package Patroni;

# One node of a cluster that Patroni looks after: a PostgreSQL server, the
# Patroni that runs it, and the links that lead to them and to etcd.
#
# Whoever wants something of the node comes through its links: the other nodes
# learn no other addresses.

use strict;
use warnings;

use HTTP::Tiny;
use JSON::PP;
use POSIX qw(WNOHANG);
use Faults;
use Link;

# Patroni takes ttl for sure if it is not less than loop_wait + 2 * retry_timeout.
our ($ttl, $loop_wait, $retry_timeout) = (6, 1, 2);

my $http = HTTP::Tiny->new(timeout => 5);

sub new
{
	my ($class, $name, $bin, $etcd, $settings) = @_;
	my $self = bless { name => $name, dir => "$Faults::dir/$name" }, $class;

	mkdir $self->{dir} or die "$self->{dir}: $!\n";
	$self->{data} = "$self->{dir}/data";
	$self->{log} = "$self->{dir}/log";
	$self->{port} = Link::free_port();
	$self->{rest_port} = Link::free_port();
	$self->{etcd} = Link->new("TCP:127.0.0.1:$etcd");
	$self->{rest} = Link->new("TCP:127.0.0.1:$self->{rest_port}");
	$self->{peers} = Link->new("TCP:127.0.0.1:$self->{port}");
	$self->{clients} = Link->new("TCP:127.0.0.1:$self->{port}");
	$self->write_settings($bin, $settings);
	return $self;
}

sub write_settings
{
	my ($self, $bin, $settings) = @_;
	my $etcd = $self->{etcd}->port;
	my $rest = $self->{rest}->port;
	my $peers = $self->{peers}->port;
	my $parameters = join '', map { "        $_: '$settings->{$_}'\n" } sort keys %$settings;

	open my $conf, '>', "$self->{dir}/patroni.yml" or die "$self->{dir}: $!";
	print {$conf} <<"END";
scope: distlock
name: $self->{name}
restapi:
  listen: 127.0.0.1:$self->{rest_port}
  connect_address: 127.0.0.1:$rest
etcd3:
  hosts: 127.0.0.1:$etcd
  use_proxies: true
bootstrap:
  dcs:
    ttl: $ttl
    loop_wait: $loop_wait
    retry_timeout: $retry_timeout
    primary_stop_timeout: $retry_timeout
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      remove_data_directory_on_rewind_failure: true
      remove_data_directory_on_diverged_timelines: true
      parameters:
$parameters
  initdb:
    - encoding: UTF8
    - locale: C
    - auth: trust
    - no-sync
postgresql:
  listen: 127.0.0.1:$self->{port}
  connect_address: 127.0.0.1:$peers
  data_dir: $self->{data}
  bin_dir: $bin
  pgpass: $self->{dir}/pgpass
  use_unix_socket: true
  authentication:
    superuser:
      username: postgres
    replication:
      username: postgres
  parameters:
    unix_socket_directories: '$self->{dir}'
  pg_hba:
    - local all all trust
    - host all all 127.0.0.1/32 trust
    - host replication all 127.0.0.1/32 trust
watchdog:
  mode: 'off'
END
	close $conf or die "$self->{dir}: $!";
	return;
}

# ---- Processes ----

# Start Patroni, which starts the server.
sub start
{
	my ($self) = @_;

	$self->{patroni} = run_program($self->{log}, {}, 'patroni', "$self->{dir}/patroni.yml");
	return;
}

# The process that the server's pid file names, if it is this server's.
sub postmaster
{
	my ($self) = @_;
	my ($pid) = slurp("$self->{data}/postmaster.pid") =~ /^(\d+)\n/ or return;

	return slurp("/proc/$pid/cmdline") =~ /\Q$self->{data}\E/ ? $pid : undef;
}

# All processes of the node: those of ours whose command line names its folder, like
# Patroni and a server that has no pid file yet, and what they have started.
sub processes
{
	my ($self) = @_;
	my %parent = map { $_ => (process($_))[1] } grep { -o "/proc/$_" } pids();
	my @found = grep { slurp("/proc/$_/cmdline") =~ m{\Q$self->{dir}\E[/\0]} && !gone($_) } keys %parent;

	for (my $i = 0; $i < @found; $i++)
	{
		foreach my $pid (sort { $a <=> $b } keys %parent)
		{
			push @found, $pid if $parent{$pid} == $found[$i] && !grep { $_ == $pid } @found;
		}
	}
	return @found;
}

# Kill all processes.  What one of them starts before it is killed itself is
# found the next time.
sub kill_all
{
	my ($self) = @_;
	my $patroni = delete $self->{patroni};

	kill 'KILL', $patroni if $patroni;
	waitpid $patroni, 0 if $patroni;
	while (my @pids = $self->processes)
	{
		kill 'KILL', @pids;
		wait_until("end of $self->{name}", sub { !grep { !gone($_) } @pids });
	}
	return;
}

# Stop all processes, parents first.
sub stop_all
{
	my ($self) = @_;

	while (my @pids = grep { (process($_))[0] !~ /T|Z|X|gone/ } $self->processes)
	{
		kill 'STOP', $_ foreach @pids;
	}
	return;
}

sub go_on
{
	my ($self) = @_;

	kill 'CONT', reverse $self->processes;
	return;
}

# End all, for good.  An immediate shutdown leaves no shared memory behind.
sub end
{
	my ($self) = @_;
	my $patroni = delete $self->{patroni};
	my $postmaster = $self->postmaster;

	$self->go_on;
	kill 'KILL', $patroni if $patroni;
	waitpid $patroni, 0 if $patroni;
	kill 'QUIT', $postmaster if $postmaster;
	wait_until("end of $self->{name}", sub { !$postmaster || gone($postmaster) });
	$self->kill_all;
	return;
}

# A Patroni that ends by itself is a failure of this test.
sub see_to
{
	my ($self) = @_;

	die "Patroni of $self->{name} has ended, see $self->{log}\n"
	  if $self->{patroni} && waitpid($self->{patroni}, WNOHANG) == $self->{patroni};
	return;
}

# ---- Questions ----

# What Patroni knows of its server; nothing if there is no answer.
sub status
{
	my ($self) = @_;
	my $answer = $http->get("http://127.0.0.1:$self->{rest_port}/patroni");

	return $answer->{content} =~ /^\{/ ? decode_json($answer->{content}) : {};
}

# What timeline the server is on, or 0.
sub timeline
{
	my ($self) = @_;

	return $self->status->{timeline} // 0;
}

# The standbys that stream from it, name -> whether synchronously.
sub standbys
{
	my ($self) = @_;
	my $status = $self->status;
	my %found;

	return {} if ($status->{role} // '') !~ /^(?:master|primary)$/ || $status->{state} ne 'running';
	foreach my $standby (grep { $_->{state} eq 'streaming' } @{ $status->{replication} // [] })
	{
		$found{ $standby->{application_name} } = $standby->{sync_state} eq 'sync';
	}
	return \%found;
}

sub post
{
	my ($self, $path, $content) = @_;

	# It answers when it is done.
	my $patient = HTTP::Tiny->new(timeout => $Faults::patience);

	return $patient->post("http://127.0.0.1:$self->{rest_port}/$path", { content => encode_json($content) });
}

sub ask
{
	my ($self, $sql) = @_;

	return ask_server($self->{dir}, $self->{port}, $sql);
}

1;
