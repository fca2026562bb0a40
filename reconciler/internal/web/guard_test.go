package web_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

// sampleAddress fills a pattern's parameters with values of the sample.
func sampleAddress(pattern string) string {
	if pattern == "GET /api/v1/why" {
		return "/api/v1/why?run=" + string(runIDOf(128)) + "&task=load"
	}
	return strings.NewReplacer("GET ", "", "{$}", "", "{composition}", "acceptance", "{number}", "128", "{task}", "checkout",
		"{sha}", string(shaLive), "{branch...}", "feature/louder", "{plugin}", "git", "runs/{id}", "runs/"+string(runIDOf(128)), "run/{id}", "run/"+string(runIDOf(128)),
		"agents/{id}", "agents/a-3", "attempts/{id}", "attempts/"+string(attemptID(100)), "{digest}", "x", "{name}", "style.css").Replace(pattern)
}

func TestNothingIsEverChanged(t *testing.T) {
	t.Parallel()
	h := handler(t, sample())
	for _, pattern := range web.Patterns() {
		if !strings.HasPrefix(pattern, "GET ") {
			t.Errorf("route %q is not a GET", pattern)
		}
		path := sampleAddress(pattern)
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"} {
			r := httptest.NewRequest(method, path, strings.NewReader("x=1"))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: status %d, Allow %q", method, path, w.Code, w.Header().Get("Allow"))
			}
		}
		r := httptest.NewRequest(http.MethodPost, path, nil)
		r.Header.Set("X-HTTP-Method-Override", "GET")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s that says it is a GET: status %d", path, w.Code)
		}
	}
}

func TestHeadIsGetWithoutBody(t *testing.T) {
	t.Parallel()
	h := handler(t, sample())
	for _, pattern := range web.Patterns() {
		path := sampleAddress(pattern)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodHead, path, nil))
		if w.Body.Len() != 0 && w.Code == http.StatusOK {
			t.Errorf("HEAD %s has a body of %d bytes", path, w.Body.Len())
		}
		if w.Code >= 400 && !strings.HasPrefix(path, "/assets/") {
			t.Errorf("HEAD %s: status %d", path, w.Code)
		}
	}
}

func TestEveryAnswerCarriesThePolicy(t *testing.T) {
	t.Parallel()
	h := handler(t, sample())
	for _, path := range []string{"/", "/nothing", "/api/v1/health", "/api/v1/nothing", "/healthz", "/c/acceptance/128/t/checkout/log.txt"} {
		res, _ := get(t, h, path)
		csp := res.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: policy %q lacks %s", path, csp, want)
			}
		}
		if strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
	}
}

func TestPathsHaveOneForm(t *testing.T) {
	t.Parallel()
	s := serve(t, sample())
	for _, path := range []string{
		"//c/acceptance", "/c/../agents", "/c/%2e%2e/agents", "/c/acceptance;x=1", "/c/acceptance%2F128",
		"/c/%61cceptance", "/%2561", "/c//acceptance", "/c/acceptance/./128", `/c\acceptance`, "/c/acceptance/128%00", "/agents?a=1;b=2",
	} {
		status := rawGet(t, s.Listener.Addr().String(), path, "127.0.0.1")
		if status != http.StatusBadRequest {
			t.Errorf("%s: status %d, want 400", path, status)
		}
	}
	for _, path := range []string{"/C/acceptance", "/c/Acceptance", "/c/acceptance/0128", "/c/acceptance/-1", "/c/acceptance/128/", "/c/acceptance/99999999999999999999"} {
		if status := rawGet(t, s.Listener.Addr().String(), path, "127.0.0.1"); status != http.StatusNotFound {
			t.Errorf("%s: status %d, want 404", path, status)
		}
	}
}

// rawGet sends a request line as it is: clients tidy paths up.
func rawGet(t *testing.T, addr, path, host string) int {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	var status int
	if _, err := fmt.Sscanf(string(answer), "HTTP/1.1 %d", &status); err != nil {
		t.Fatalf("%s: %v in %.100q", path, err, answer)
	}
	return status
}

func TestLoopbackAnswersOnlyToItsOwnNames(t *testing.T) {
	t.Parallel()
	h, err := web.New(web.Config{Source: sample(), Public: "https://maestro.example.org/", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(local, host string) int {
		r := httptest.NewRequest(http.MethodGet, "/healthz", nil)
		r.Host = host
		addr, err := net.ResolveTCPAddr("tcp", local)
		if err != nil {
			t.Fatal(err)
		}
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(addr)))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	for _, host := range []string{"localhost", "localhost:8420", "127.0.0.1:8420", "[::1]:8420", "ops.localhost", "Maestro.Example.org", "maestro.example.org:443"} {
		if got := ask("127.0.0.1:8420", host); got != 200 {
			t.Errorf("host %s on loopback: status %d", host, got)
		}
	}
	for _, host := range []string{"attacker.example", "127.0.0.1.attacker.example", "10.0.0.1", "localhost.attacker.example", ""} {
		for _, local := range []string{"127.0.0.1:8420", "[::1]:8420"} {
			if got := ask(local, host); got != http.StatusMisdirectedRequest {
				t.Errorf("host %q on %s: status %d, want 421", host, local, got)
			}
		}
	}
	if got := ask("10.0.0.5:8420", "anything.example"); got != 200 {
		t.Errorf("a listener that is not loopback refused a name: %d", got)
	}
}

func TestPublicAddressMustBeOne(t *testing.T) {
	t.Parallel()
	_, err := web.New(web.Config{Source: sample(), Public: "maestro", Log: slog.New(slog.DiscardHandler)})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v, want an invalid address", err)
	}
}

func TestAssetsAreKeptForEverAndPagesAreAskedForAgain(t *testing.T) {
	t.Parallel()
	src := sample()
	h := handler(t, src)
	res, body := get(t, h, "/")
	_, rest, _ := strings.Cut(body, `rel="stylesheet" href="`)
	style, _, _ := strings.Cut(rest, `"`)
	asset, _ := get(t, h, style)
	if asset.StatusCode != 200 || !strings.Contains(asset.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("%s: %d %s", style, asset.StatusCode, asset.Header.Get("Cache-Control"))
	}
	if old, _ := get(t, h, "/assets/0000/style.css"); old.StatusCode != 404 {
		t.Errorf("an asset of another version: status %d", old.StatusCode)
	}
	tag := res.Header.Get("ETag")
	if again, _ := get(t, h, "/", "If-None-Match", tag); again.StatusCode != http.StatusNotModified {
		t.Errorf("nothing changed, status %d", again.StatusCode)
	}
	src.change(pipelineChange("a-3"), nil)
	if again, _ := get(t, h, "/", "If-None-Match", tag); again.StatusCode != http.StatusOK {
		t.Errorf("something changed, status %d", again.StatusCode)
	}
	if !strings.Contains(res.Header.Get("Cache-Control"), "private") {
		t.Errorf("a page may be kept by a proxy: %s", res.Header.Get("Cache-Control"))
	}
}

func TestIconCannotRun(t *testing.T) {
	t.Parallel()
	src := sample()
	src.icons["git"] = fakeIcon{`<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>`, "image/svg+xml"}
	src.icons["shell"] = fakeIcon{"<script>alert(1)</script>", "text/html"}
	h := handler(t, src)
	res, _ := get(t, h, "/plugins/git/icon")
	if csp := res.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "sandbox") || !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("policy %q", csp)
	}
	if res, _ := get(t, h, "/plugins/shell/icon"); res.StatusCode != 404 {
		t.Errorf("an icon that is no image: status %d", res.StatusCode)
	}
}

func TestReadyOnlyWhileTheRecordAnswers(t *testing.T) {
	t.Parallel()
	src := sample()
	h := handler(t, src)
	if res, _ := get(t, h, "/readyz"); res.StatusCode != 200 {
		t.Errorf("ready: status %d", res.StatusCode)
	}
	src.fail(fault.New(fault.Internal, "gone"))
	if res, _ := get(t, h, "/readyz"); res.StatusCode != 503 {
		t.Errorf("not ready: status %d", res.StatusCode)
	}
	if res, _ := get(t, h, "/healthz"); res.StatusCode != 200 {
		t.Errorf("alive: status %d", res.StatusCode)
	}
}
