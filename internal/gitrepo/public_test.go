package gitrepo_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
)

func TestAddressesThatAreNotPublicAreRefusedAtTheConnection(t *testing.T) {
	t.Parallel()
	for _, ip := range []string{
		"127.0.0.1", "127.1.2.3", "::1", "0.0.0.0", "::", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
		"169.254.169.254", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "100.64.0.1", "192.0.0.8", "198.18.0.1",
		"224.0.0.1", "ff02::1", "ff01::1", "255.255.255.255", "240.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
		"::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1",
	} {
		if err := gitrepo.RefusePrivate("tcp", net.JoinHostPort(ip, "443"), nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", ip, err)
		}
	}
	for _, address := range []string{"", "example.com:443", "127.0.0.1", "1.2.3.4:port"} {
		if err := gitrepo.RefusePrivate("tcp", address, nil); err == nil {
			t.Errorf("%q is taken for an address", address)
		}
	}
	for _, ip := range []string{"140.82.121.3", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8"} {
		if err := gitrepo.RefusePrivate("tcp", net.JoinHostPort(ip, "443"), nil); err != nil {
			t.Errorf("%s: %v", ip, err)
		}
	}
}

// A name that leads to this machine stands for one that is made to do so only when the
// connection is opened.
func TestPublicRepositoryIsNotReadFromThisMachine(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1") // which is not asked
	var asked atomic.Int32
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "0"} {
		url := fmt.Sprintf("https://%s:%s/x.git", host, port)
		r, err := gitrepo.Open(t.Context(), gitrepo.Options{URL: url, Dir: t.TempDir(), Public: true, Credentials: login})
		if err != nil {
			continue // refused by its form
		}
		for what, f := range map[string]func() error{
			"reach": func() error { return r.Reach(t.Context()) },
			"fetch": func() error { _, err := r.Fetch(t.Context()); return err },
		} {
			if err := f(); err == nil || strings.Contains(err.Error(), secret) {
				t.Errorf("%s %s: %v", what, url, err)
			} else if host == "localhost" && !strings.Contains(err.Error(), "no public address") {
				t.Errorf("%s %s: %v", what, url, err)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
	for _, url := range []string{t.TempDir(), "file://" + t.TempDir(), "http://127.0.0.1:" + port + "/x.git"} {
		if _, err := gitrepo.Open(t.Context(), gitrepo.Options{URL: url, Dir: t.TempDir(), Public: true}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestReachSaysWhetherARepositoryAnswers(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.write("f", "one")
	g.commit("one")
	bare := g.bare()
	s := serve(t, bare)
	r := over(t, s, bare, gitrepo.Options{})
	local := open(t, gitrepo.Options{URL: bare.dir})
	for what, repo := range map[string]*gitrepo.Repo{"remote": r, "local": local} {
		if err := repo.Reach(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := s.requests.Load(); n != 1 {
		t.Errorf("it took %d requests, want 1", n)
	}
	s.Close()
	if err := r.Reach(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("of a server that is gone: %v", err)
	}
}
