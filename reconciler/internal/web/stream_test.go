package web_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

func pipelineChange(agent pipeline.AgentID) pipeline.Change {
	return pipeline.Change{At: epoch, Kind: pipeline.ChangeAgent, Agent: agent}
}

// event is one message of the stream.
type event struct{ id, kind, data string }

// open starts a request whose answer is read while it is written.
func open(t *testing.T, url string, headers ...string) (*bufio.Reader, func()) {
	t.Helper()
	// Longer than anything here takes; a stream that stays silent fails the test.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d", url, res.StatusCode)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return bufio.NewReader(res.Body), cancel
}

func next(t *testing.T, r *bufio.Reader) event {
	t.Helper()
	var e event
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "" && e.kind != "":
			return e
		case strings.HasPrefix(line, "id: "):
			e.id = line[4:]
		case strings.HasPrefix(line, "event: "):
			e.kind = line[7:]
		case strings.HasPrefix(line, "data: "):
			e.data = line[6:]
		}
	}
}

// hasTopics fails unless the event names the topics.
func hasTopics(t *testing.T, e event, want ...string) {
	t.Helper()
	var data struct{ Topics []string }
	if err := json.Unmarshal([]byte(e.data), &data); err != nil || e.kind != "changed" {
		t.Fatalf("event %+v: %v", e, err)
	}
	for _, w := range want {
		if !strings.Contains(" "+strings.Join(data.Topics, " ")+" ", " "+w+" ") {
			t.Errorf("topics %v lack %s", data.Topics, w)
		}
	}
}

func TestStreamTellsWhatChanged(t *testing.T) {
	t.Parallel()
	src := sample()
	s := serve(t, src)
	r, _ := open(t, s.URL+"/events")
	if e := next(t, r); e.kind != "hello" || e.data != `{"seq":40,"resumed":false}` || e.id != "40" {
		t.Fatalf("first event %+v", e)
	}
	src.change(pipeline.Change{Kind: pipeline.ChangeTask, Run: runIDOf(128), Task: "load"}, nil)
	e := next(t, r)
	hasTopics(t, e, "r:"+string(runIDOf(128)), "tasks", "board")
	if e.id != "41" {
		t.Errorf("id %s, want 41", e.id)
	}
}

func TestChangesThatComeTogetherAreOneEvent(t *testing.T) {
	t.Parallel()
	src := sample()
	s := serve(t, src)
	r, _ := open(t, s.URL+"/events")
	next(t, r)
	for range 300 {
		src.change(pipeline.Change{Kind: pipeline.ChangeTask, Run: runIDOf(128)}, nil)
	}
	src.change(pipelineChange("a-3"), nil)
	events := 0
	for id := ""; id != "341"; events++ {
		id = next(t, r).id
	}
	if events > 10 {
		t.Errorf("301 changes made %d events", events)
	}
}

func TestStreamGoesOnWhereTheBrowserLeftOff(t *testing.T) {
	t.Parallel()
	src := sample()
	s := serve(t, src)
	src.change(pipelineChange("a-3"), nil)
	r, _ := open(t, s.URL+"/events", "Last-Event-ID", "40")
	if e := next(t, r); e.data != `{"seq":40,"resumed":true}` {
		t.Fatalf("hello %+v", e)
	}
	hasTopics(t, next(t, r), "agents")

	for name, id := range map[string]string{"from the future": "9000", "not a number": "x"} {
		r, _ := open(t, s.URL+"/events", "Last-Event-ID", id)
		if e := next(t, r); e.data != `{"seq":41,"resumed":false}` {
			t.Errorf("%s: hello %+v", name, e)
		}
	}
}

func TestAClientFarBehindIsToldThatAllChanged(t *testing.T) {
	t.Parallel()
	src := sample()
	s := serve(t, src)
	for i := range 500 {
		src.change(pipeline.Change{Kind: pipeline.ChangeRun, Run: runIDOf(i)}, nil)
	}
	r, _ := open(t, s.URL+"/events", "Last-Event-ID", "40")
	next(t, r)
	if e := next(t, r); !strings.Contains(e.data, `"topics":["all"]`) || e.id != "540" {
		t.Errorf("got %+v", e)
	}
}

func TestStreamTellsThatALogGrew(t *testing.T) {
	t.Parallel()
	src := sample()
	s := serve(t, src)
	id := attemptID(500)
	r, _ := open(t, s.URL+"/events?logs="+string(id))
	next(t, r)
	if e := next(t, r); e.kind != "log" || !strings.Contains(e.data, `"lines":0`) {
		t.Fatalf("the log as it is: %+v", e)
	}
	src.write(id, "one\ntwo", false)
	if e := next(t, r); !strings.Contains(e.data, `"lines":2`) || strings.Contains(e.data, "sealed") {
		t.Errorf("got %+v", e)
	}
	src.write(id, "\n", true)
	if e := next(t, r); !strings.Contains(e.data, `"sealed":true`) {
		t.Errorf("got %+v", e)
	}
}

func TestLogIsFollowedToItsEnd(t *testing.T) {
	t.Parallel()
	src := sample()
	s := serve(t, src)
	id := attemptID(500)
	src.write(id, "zero\none\n", false)
	r, _ := open(t, s.URL+"/api/v1/attempts/"+string(id)+"/log?follow=1&off=5")
	if line, err := r.ReadString('\n'); line != "one\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	src.write(id, "two\n", false)
	if line, err := r.ReadString('\n'); line != "two\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	src.write(id, "three", true)
	rest, err := io.ReadAll(r)
	if err != nil || string(rest) != "three" {
		t.Errorf("got %q, %v; want the last bytes and a clean end", rest, err)
	}
}

func TestChangesAreFollowed(t *testing.T) {
	t.Parallel()
	src := sample()
	s := serve(t, src)
	r, _ := open(t, s.URL+"/api/v1/events?after=39&follow=1")
	for _, want := range []string{`{"seq":40,`, `{"seq":41,`} {
		line, err := r.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, want) {
			t.Fatalf("got %q, %v; want %s", line, err, want)
		}
		src.change(pipelineChange("a-1"), nil)
	}
}

func TestAStreamThatEndsLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	src := sample()
	s := serve(t, src)
	r, cancel := open(t, s.URL+"/events?logs="+string(attemptID(500))+","+string(attemptID(501)))
	next(t, r)
	next(t, r)
	if n := src.watchers(); n != 4 {
		t.Fatalf("%d watchers of the record, the notes and two logs", n)
	}
	cancel()
	s.Close() // waits for the handlers
	if n := src.watchers(); n != 0 {
		t.Errorf("%d watchers are left", n)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	t.Parallel()
	src := sample()
	s := serve(t, src)
	addr := s.Listener.Addr().String()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range web.MostStreams {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if _, err := fmt.Fprintf(c, "GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, "200") {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	if status := rawGet(t, addr, "/events", "127.0.0.1"); status != http.StatusServiceUnavailable {
		t.Errorf("one stream too many: status %d, want 503", status)
	}
	if status := rawGet(t, addr, "/", "127.0.0.1"); status != http.StatusOK {
		t.Errorf("a page beside all these streams: status %d", status)
	}
}

func TestLogsToFollowAreChecked(t *testing.T) {
	t.Parallel()
	h := handler(t, sample())
	many := strings.TrimSuffix(strings.Repeat("a,", 3)+"b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q,r", ",")
	for _, logs := range []string{"../x", many, "a,,b"} {
		if res, _ := get(t, h, "/events?logs="+logs); res.StatusCode != 400 {
			t.Errorf("logs=%s: status %d", logs, res.StatusCode)
		}
	}
}

func TestAClientThatDoesNotReadIsCutOff(t *testing.T) {
	t.Parallel()
	src := sample()
	// More than sockets buffer.
	src.write(attemptID(500), strings.Repeat("x", 64<<20), false)
	h, err := web.NewImpatient(web.Config{Source: src, Log: slog.New(slog.DiscardHandler)}, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		h.ServeHTTP(w, r)
	}))
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET /api/v1/attempts/%s/log?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", attemptID(500)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the handler still waits for a client that does not read")
	}
}

func TestAStreamLeavesItsConnectionInOrder(t *testing.T) {
	t.Parallel()
	src := sample()
	h, err := web.NewImpatient(web.Config{Source: src, Log: slog.New(slog.DiscardHandler)}, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	var addrs []string
	late := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		addrs = append(addrs, r.RemoteAddr)
		if r.URL.Path == "/healthz" {
			<-late
		}
		h.ServeHTTP(w, r)
	}))
	defer s.Close()
	for _, path := range []string{"/api/v1/events", "/healthz"} {
		if path == "/healthz" {
			time.AfterFunc(150*time.Millisecond, func() { close(late) })
		}
		res, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		_ = res.Body.Close()
	}
	if len(addrs) != 2 || addrs[0] != addrs[1] {
		t.Errorf("requests came over %v, want one connection", addrs)
	}
}
