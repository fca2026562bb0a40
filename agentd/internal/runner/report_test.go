//go:build linux

package runner_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/agentd/internal/runner"
	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// provision is what a task of the tests declares that it reports.
var provision = pipeline.Type{Kind: pipeline.KindStruct, Fields: []pipeline.Field{
	{Name: "ids", Type: pipeline.Type{Kind: pipeline.KindList, Elem: &pipeline.Type{Kind: pipeline.KindString}}},
	{Name: "count", Type: pipeline.Type{Kind: pipeline.KindInt, Text: "int & >=1", Min: "1"}, Optional: true},
	{Name: "zone", Type: pipeline.Type{Kind: pipeline.KindString}, Default: json.RawMessage(`"eu"`)},
}}

const ids = `{"output":{"name":"ids","value":["a"]}}`

func TestWhatATaskReportsDecidesItsOutcome(t *testing.T) {
	t.Parallel()
	success := shim.Result{Outcome: pipeline.Success}
	for name, c := range map[string]struct {
		lines   string
		program shim.Result
		want    pipeline.State
		reason  string
		outputs string
	}{
		"all there":                   {ids, success, pipeline.Success, "", `{"ids":["a"],"zone":"eu"}`},
		"default is overruled":        {ids + "\n" + `{"output":{"name":"zone","value":"us"}}`, success, pipeline.Success, "", `{"ids":["a"],"zone":"us"}`},
		"the last value counts":       {`{"output":{"name":"ids","value":[]}}` + "\n" + ids, success, pipeline.Success, "", `{"ids":["a"],"zone":"eu"}`},
		"empty lines and no newline":  {"\n\n" + ids, success, pipeline.Success, "", `{"ids":["a"],"zone":"eu"}`},
		"windows line ends":           {ids + "\r\n", success, pipeline.Success, "", `{"ids":["a"],"zone":"eu"}`},
		"exact numbers":               {ids + "\n" + `{"output":{"name":"count","value":12345678901234567890123}}`, success, pipeline.Success, "", `{"count":12345678901234567890123,"ids":["a"],"zone":"eu"}`},
		"missing":                     {"", success, pipeline.Error, "output ids of type [...string] was not reported", ""},
		"wrong type":                  {`{"output":{"name":"ids","value":"a"}}`, success, pipeline.Error, `output ids must be [...string], and the task reported "a"`, ""},
		"out of bounds":               {ids + "\n" + `{"output":{"name":"count","value":0}}`, success, pipeline.Error, `output count must be int & >=1, and the task reported 0: 0 is not >=1`, `{"ids":["a"]}`},
		"not declared":                {ids + "\n" + `{"output":{"name":"idz","value":1}}`, success, pipeline.Error, "output idz is not declared", `{"ids":["a"]}`},
		"too large":                   {`{"output":{"name":"ids","value":["` + strings.Repeat("x", 140_000) + `"]}}`, success, pipeline.Error, "most is 131072", ""},
		"line that is no JSON":        {ids + "\n\noutput=1\n", success, pipeline.Error, "line 3 of MAESTRO_EVENTS: invalid character 'o' looking for beginning of value: output=1", `{"ids":["a"]}`},
		"member that is unknown":      {ids + "\n" + `{"outptu":1}`, success, pipeline.Error, `line 2 of MAESTRO_EVENTS: json: unknown field "outptu"`, `{"ids":["a"]}`},
		"failure keeps its reason":    {"output=1", shim.Result{Outcome: pipeline.Failure, Reason: "the program exited with code 3"}, pipeline.Failure, "the program exited with code 3", ""},
		"failure keeps what fits":     {ids + "\n" + `{"output":{"name":"count","value":0}}` + "\n" + `{"output":{"name":"idz","value":1}}`, shim.Result{Outcome: pipeline.Failure}, pipeline.Failure, "", `{"ids":["a"]}`},
		"timeout keeps what fits":     {ids, shim.Result{Outcome: pipeline.Timeout}, pipeline.Timeout, "", `{"ids":["a"]}`},
		"record that is too large":    {ids + "\n" + `{"record":{"name":"r","value":"` + strings.Repeat("x", pipeline.MaxRecords) + `"}}`, success, pipeline.Error, "the records have 32776 bytes, most is 32768", `{"ids":["a"]}`},
		"record without a value":      {ids + "\n" + `{"record":{"name":"r"}}`, success, pipeline.Error, "a record has a name and a value", `{"ids":["a"]}`},
		"not needed":                  {`{"not_needed":"nothing changed"}`, success, pipeline.NotNeeded, "there was nothing to do: nothing changed", `{"zone":"eu"}`},
		"not needed, no reason":       {ids + "\n" + `{"not_needed":true}`, success, pipeline.NotNeeded, "there was nothing to do", `{"ids":["a"],"zone":"eu"}`},
		"not needed, but wrong":       {`{"not_needed":true}` + "\n" + `{"output":{"name":"ids","value":1}}`, success, pipeline.Error, "output ids must be", ""},
		"needed after all":            {`{"not_needed":true}` + "\n" + `{"not_needed":false}` + "\n" + ids, success, pipeline.Success, "", `{"ids":["a"],"zone":"eu"}`},
		"cancel":                      {`{"cancel":"frozen"}`, success, pipeline.Cancelled, "the task asked to cancel the run: frozen", ""},
		"unreadable":                  {"", shim.Result{Outcome: pipeline.Success, EventsError: "it is not a regular file but a FIFO"}, pipeline.Error, "cannot be read: it is not a regular file but a FIFO", ""},
		"lost log is told in success": {ids, shim.Result{Outcome: pipeline.Success, LogLost: 7, LogError: "no space"}, pipeline.Success, "7 bytes of its log could not be kept: no space", `{"ids":["a"],"zone":"eu"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "outputs")
			if err := os.WriteFile(path, []byte(c.lines), 0o600); err != nil {
				t.Fatal(err)
			}
			r := runner.Judge(&c.program, path, &wire.Spec{Outputs: provision})
			want(t, r, c.want, c.reason)
			if string(r.Outputs) != c.outputs {
				t.Errorf("outputs = %s, want %s", r.Outputs, c.outputs)
			}
			if r.CancelRun != (name == "cancel") {
				t.Errorf("cancel run = %v", r.CancelRun)
			}
		})
	}
}

func TestRecordsAreKeptHoweverTheTaskEnds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "outputs")
	lines := `{"record":{"name":"cost","value":1}}` + "\n" + `{"record":{"name":"who","value":{"by":"ana"}}}` + "\n" + `{"record":{"name":"cost","value":2}}`
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, outcome := range []pipeline.State{pipeline.Success, pipeline.Failure, pipeline.Cancelled} {
		r := runner.Judge(&shim.Result{Outcome: outcome}, path, &wire.Spec{})
		want(t, r, outcome, "")
		if string(r.Records) != `{"cost":2,"who":{"by":"ana"}}` {
			t.Errorf("records = %s", r.Records)
		}
	}
}

// What does not fit into a message would be told for ever, to nobody.
func TestEveryResultFitsIntoAMessage(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := h.start(job(`i=0; u=$(head -c 1900 /dev/zero | tr '\0' '&')
while [ $i -lt 50 ]; do i=$((i+1)); echo "{\"link\":{\"name\":\"n\",\"url\":\"https://a.example/$u\"}}"; done >>$MAESTRO_EVENTS`))
	r := h.result(o)
	want(t, r, pipeline.Error, "what the task reported does not fit into a message")
	if r.LogBytes != 0 || r.Exit == nil {
		t.Errorf("result = %+v", r)
	}
}

func TestOnlyWebPagesBecomeLinks(t *testing.T) {
	t.Parallel()
	for url, ok := range map[string]bool{
		"https://ci.example/1": true, "http://localhost:8080/x?y#z": true,
		"javascript:alert(1)": false, "data:text/html,x": false, "//evil": false, "": false, "https:": false, "HTTPS://ok.example": true,
		"https://" + strings.Repeat("a", 3000): false,
	} {
		line, err := json.Marshal(map[string]any{"link": pipeline.Link{Name: "n", URL: url}})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "outputs")
		if err := os.WriteFile(path, line, 0o600); err != nil {
			t.Fatal(err)
		}
		r := runner.Judge(&shim.Result{Outcome: pipeline.Success}, path, &wire.Spec{})
		if (len(r.Links) == 1) != ok || (r.Outcome == pipeline.Success) != ok {
			t.Errorf("%.40q: links %v, outcome %s", url, r.Links, r.Outcome)
		}
	}
}

// FuzzReport: whatever a task writes gives a result that the wire can carry.
func FuzzReport(f *testing.F) {
	for _, b := range hostile(f, "events") {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "outputs")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r := runner.Judge(&shim.Result{Outcome: pipeline.Success}, path, &wire.Spec{Outputs: provision})
		if !r.Outcome.Terminal() || (r.Outcome == pipeline.Error && r.Reason == "") {
			t.Errorf("result %+v", r)
		}
		if len(r.Outputs) > 0 && len(provision.CheckJSON(r.Outputs)) > 0 && r.Outcome == pipeline.Success {
			t.Errorf("outputs %s do not fit", r.Outputs)
		}
		if _, err := wire.Encode(&wire.Result{Result: r}); err != nil {
			t.Error(err)
		}
	})
}

// hostile returns the files of testdata/hostile/KIND by name.
func hostile(tb testing.TB, kind string) map[string][]byte {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "hostile", kind, "*"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no hostile %s: %v", kind, err)
	}
	all := map[string][]byte{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		all[filepath.Base(file)] = b
	}
	return all
}

func TestTaskIsHeardWhileItRuns(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := h.start(job(`
echo '{"waiting":"a free license"}' >> $MAESTRO_EVENTS
printf '{"progress":0.5}\nnot json\n{"link":{"name":"report","url":"https://ci.example/7"}}\n{"te' >> $MAESTRO_EVENTS
read x < ` + fifo(t) + `
printf 'xt":"done"}\n{"waiting":""}\n' >> $MAESTRO_EVENTS
sleep 0.6; : > $MAESTRO_EVENTS`))
	note := func(what string, ok func(*wire.Note) bool) {
		h.until(what, func(m wire.Message) bool { n, is := m.(*wire.Note); return is && n.Attempt == o.Attempt && ok(n) })
	}
	note("waiting", func(n *wire.Note) bool { return n.Waiting != nil && *n.Waiting == "a free license" })
	note("progress", func(n *wire.Note) bool { return n.Progress != nil && *n.Progress == 0.5 })
	note("link", func(n *wire.Note) bool { return len(n.Links) == 1 && n.Links[0].Name == "report" })
	before := count[*wire.Note](h.control, o.Attempt)
	h.connect()
	h.until("what it waits for, again on the new link", func(wire.Message) bool { return count[*wire.Note](h.control, o.Attempt) > before })
	if err := os.WriteFile(fifoPath(t), []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	note("text", func(n *wire.Note) bool { return n.Text == "done" })
	note("no more waiting", func(n *wire.Note) bool { return n.Waiting != nil && *n.Waiting == "" })
	want(t, h.result(o), pipeline.Success, "")
}
