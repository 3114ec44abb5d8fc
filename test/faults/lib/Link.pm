package Link;

# A stretch of network: connections to a port of this machine are led elsewhere,
# to an address as socat takes it, by socat, which can be stopped (nothing gets
# through, and nobody is told) or ended (both sides are told).

use strict;
use warnings;

use IO::Socket::INET;
use POSIX qw(WNOHANG);
use Faults;

my @links;

sub free_port
{
	return IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1)->sockport;
}

sub new
{
	my ($class, $target) = @_;
	my $self = bless { port => free_port(), target => $target }, $class;

	push @links, $self;
	$self->open;
	return $self;
}

sub port
{
	my ($self) = @_;

	return $self->{port};
}

sub open
{
	my ($self) = @_;

	$self->{pid} = run_program("$Faults::dir/links.log", { group => 1 }, 'socat',
		"TCP-LISTEN:$self->{port},bind=127.0.0.1,fork,reuseaddr,backlog=128", $self->{target});
	return;
}

# Nothing gets through for some seconds.
sub cut
{
	my ($self, $kind, $target, $seconds) = @_;

	stop_process($kind, -$self->{pid}, $target, $seconds, sub { !gone($self->{pid}) });
	return;
}

sub is_cut
{
	my ($self) = @_;

	return is_stopped(-$self->{pid});
}

# Nothing gets through until further notice.  A cut that would end by itself does
# so before.
sub stop
{
	my ($self) = @_;

	see_to_stopped(-$self->{pid});
	kill 'STOP', -$self->{pid};
	return;
}

sub go_on
{
	my ($self) = @_;

	kill 'CONT', -$self->{pid};
	return;
}

# All connections break.
sub close
{
	my ($self) = @_;

	see_to_stopped(-$self->{pid});
	kill 'KILL', -$self->{pid};
	waitpid $self->{pid}, 0;
	$self->{pid} = undef;
	return;
}

sub reset
{
	my ($self) = @_;

	$self->close;
	$self->open;
	return;
}

# A port may have been taken by somebody else for a moment.
sub see_to_all
{
	foreach my $link (@links)
	{
		$link->open if $link->{pid} && waitpid($link->{pid}, WNOHANG) == $link->{pid};
	}
	return;
}

sub close_all
{
	$_->close foreach grep { $_->{pid} } @links;
	return;
}

1;
