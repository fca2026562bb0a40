# serve.pl ROOT PAGE TEXT: serves ROOT on a free port of loopback, asks itself for
# PAGE over HTTP, and fails unless the answer is good and contains TEXT.
use strict;
use warnings;
use IO::Socket::INET;

my ($root, $page, $text) = @ARGV;
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 5)
    or die "cannot listen: $!\n";
my $port = $listener->sockport;
my $child = fork // die "cannot fork: $!\n";
if (!$child) {
    while (my $c = $listener->accept) {
        my $line = <$c> // '';
        while (defined(my $header = <$c>)) { last if $header =~ /^\r?\n$/ }
        my ($path) = $line =~ m{^GET /([\w./-]*) HTTP/1\.[01]};
        if (defined $path && $path !~ /\.\./ && open(my $f, '<', "$root/$path")) {
            local $/;
            my $body = <$f>;
            print $c "HTTP/1.0 200 OK\r\nContent-Length: ", length($body), "\r\n\r\n", $body;
        } else {
            print $c "HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        }
        close $c;
    }
    exit 0;
}
my $c = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port", Timeout => 10) or die "cannot connect: $!\n";
print $c "GET /$page HTTP/1.0\r\n\r\n";
my $answer = do { local $/; <$c> };
kill 'TERM', $child;
waitpid $child, 0;
my ($status) = ($answer // '') =~ m{^HTTP/1\.0 (\d+)};
print "http://127.0.0.1:$port/$page answered ", $status // 'nothing', "\n";
exit 1 unless ($status // 0) == 200;
if (index($answer, $text) < 0) {
    print "the page does not contain \"$text\"\n";
    exit 1;
}
