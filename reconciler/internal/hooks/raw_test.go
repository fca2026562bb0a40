package hooks_test

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/reconciler/internal/hooks"
)

func TestPostsThatSayTwoLengthsAreRefused(t *testing.T) {
	t.Parallel()
	h := newHints("octo/ops")
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	defer s.Close()
	body := `{"repository": {"full_name": "octo/ops"}, "pull_request": {"number": 7}}`
	for name, c := range map[string]struct {
		headers string
		want    int
	}{
		"as it should be":    {fmt.Sprintf("Content-Length: %d\r\n", len(body)), http.StatusAccepted},
		"less than nothing":  {"Content-Length: -1\r\n", http.StatusBadRequest},
		"no number":          {"Content-Length: 0x10\r\n", http.StatusBadRequest},
		"two":                {fmt.Sprintf("Content-Length: %d\r\nContent-Length: 5\r\n", len(body)), http.StatusBadRequest},
		"in pieces and not":  {"Transfer-Encoding: chunked, identity\r\n", http.StatusNotImplemented},
		"pieces that are no": {"Transfer-Encoding: chunked\r\n", http.StatusBadRequest},
		"fewer than it has":  {fmt.Sprintf("Content-Length: %d\r\n", len(body)-1), http.StatusUnauthorized},
	} {
		before := len(h.got)
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-GitHub-Event: pull_request\r\nX-GitHub-Delivery: %s\r\nX-Hub-Signature-256: %s\r\n%s\r\n%s",
			hooks.GitHubPath, strings.ReplaceAll(name, " ", "-"), signedByGitHub(body), c.headers, body+"\r\n")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_ = res.Body.Close()
		_ = conn.Close()
		if res.StatusCode != c.want || (len(h.got) > before) != (c.want == http.StatusAccepted) {
			t.Errorf("%s: %s, want %d, %d hints", name, res.Status, c.want, len(h.got)-before)
		}
	}
}

// TestSignaturesAreComparedInConstantTime reads the package: no test could measure it.
func TestSignaturesAreComparedInConstantTime(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	made, compared := 0, 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		made += strings.Count(string(text), "hmac.New(")
		compared += strings.Count(string(text), "hmac.Equal(")
		if strings.Contains(string(text), "bytes.Equal(") || strings.Contains(string(text), "bytes.Compare(") {
			t.Errorf("%s compares bytes otherwise", file)
		}
	}
	if made == 0 || made != compared {
		t.Errorf("%d sums are made and %d compared by hmac.Equal", made, compared)
	}
}
