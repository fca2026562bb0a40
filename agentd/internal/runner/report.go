package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

const (
	// People read these in a list; the log has room for more.
	mostText     = 1000
	mostLinks    = 50
	mostLinkName = 200
	mostURL      = 2000
	// mostProblems keeps a reason readable; the first ones are the ones to mend.
	mostProblems = 5
)

// event is a line of what a task reports. A member that is unknown is a mistake:
// what a plugin says must not be lost in silence.
type event struct {
	Output *struct {
		Name  string          `json:"name"`
		Value json.RawMessage `json:"value"`
	} `json:"output"`
	Link     *pipeline.Link `json:"link"`
	Progress *float64       `json:"progress"`
	Waiting  *string        `json:"waiting"`
	Text     *string        `json:"text"`
	// NotNeeded and Cancel are true, or why.
	NotNeeded *because `json:"not_needed"`
	Cancel    *because `json:"cancel"`
	// Record is kept with the task; nothing of the run depends on it.
	Record *struct {
		Name  string          `json:"name"`
		Value json.RawMessage `json:"value"`
	} `json:"record"`
}

// because is true, false or a reason.
type because struct {
	yes bool
	why string
}

// UnmarshalJSON reads true, false or a text.
func (b *because) UnmarshalJSON(raw []byte) error {
	if json.Unmarshal(raw, &b.yes) == nil {
		return nil
	}
	b.yes = true
	if err := json.Unmarshal(raw, &b.why); err != nil {
		return errors.New("want true, or a text that says why")
	}
	return nil
}

func parseEvent(line []byte) (event, error) {
	var e event
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return e, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return e, errors.New("more than one JSON value")
	}
	if e == (event{}) {
		return e, errors.New("it says nothing")
	}
	switch {
	case e.Output != nil && (e.Output.Name == "" || e.Output.Value == nil):
		return e, errors.New("an output has a name and a value")
	case e.Record != nil && (e.Record.Name == "" || e.Record.Value == nil):
		return e, errors.New("a record has a name and a value")
	case e.Progress != nil && (*e.Progress < 0 || *e.Progress > 1):
		return e, errors.New("progress is a number from 0 to 1")
	case e.Link != nil && !goodLink(*e.Link):
		return e, errors.New("a link has a name and an http or https address")
	}
	return e, nil
}

// goodLink: anything but a web page could run something in the reader's browser.
func goodLink(l pipeline.Link) bool {
	u, err := url.Parse(l.URL)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" &&
		l.Name != "" && len(l.Name) <= mostLinkName && len(l.URL) <= mostURL
}

// eventTail reads the live copy of what a task reports.
type eventTail struct {
	at   int64
	rest []byte
}

// read returns what is new as one note; false when there is nothing. Lines with
// mistakes are left out here: the end of the task tells of them.
func (t *eventTail) read(path string) (wire.Note, bool) {
	fi, err := os.Stat(path)
	if err != nil || fi.Size() <= t.at {
		return wire.Note{}, false
	}
	f, err := os.Open(path)
	if err != nil {
		return wire.Note{}, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, t.at, shim.MaxEvents))
	if err != nil {
		return wire.Note{}, false
	}
	t.at += int64(len(b))
	t.rest = append(t.rest, b...)
	end := bytes.LastIndexByte(t.rest, '\n') + 1
	var note wire.Note
	said := false
	for line := range bytes.Lines(t.rest[:end]) {
		if e, err := parseEvent(line); err == nil {
			said = e.addTo(&note) || said
		}
	}
	t.rest = slices.Clone(t.rest[end:])
	return note, said
}

// addTo puts into a note what people want to know at once.
func (e *event) addTo(n *wire.Note) bool {
	said := false
	if e.Waiting != nil {
		text := clip(*e.Waiting)
		n.Waiting, said = &text, true
	}
	if e.Progress != nil {
		n.Progress, said = e.Progress, true
	}
	if e.Text != nil {
		n.Text, said = clip(*e.Text), true
	}
	if e.Link != nil && len(n.Links) < mostLinks {
		n.Links, said = append(n.Links, *e.Link), true
	}
	return said
}

func clip(s string) string {
	if len(s) <= mostText {
		return s
	}
	return strings.ToValidUTF8(s[:mostText], "") + "…"
}

// report is all that a task reported.
type report struct {
	outputs   map[string]json.RawMessage
	records   map[string]json.RawMessage
	links     []pipeline.Link
	notNeeded because
	cancel    because
	problems  []string
}

func readReport(path string) (report, error) {
	r := report{outputs: map[string]json.RawMessage{}, records: map[string]json.RawMessage{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	n := 0
	for line := range bytes.Lines(b) {
		n++
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		e, err := parseEvent(line)
		if err != nil {
			r.problems = append(r.problems, fmt.Sprintf("line %d of MAESTRO_EVENTS: %v: %s", n, err, brief(line)))
			continue
		}
		r.add(e)
	}
	return r, nil
}

// add takes an event; of what is said twice the last counts.
func (r *report) add(e event) {
	if e.Output != nil {
		r.outputs[e.Output.Name] = e.Output.Value
	}
	if e.Record != nil {
		r.records[e.Record.Name] = e.Record.Value
	}
	if e.Link != nil && len(r.links) < mostLinks {
		r.links = append(r.links, *e.Link)
	}
	if e.NotNeeded != nil {
		r.notNeeded = *e.NotNeeded
	}
	if e.Cancel != nil {
		r.cancel = *e.Cancel
	}
}

// judge makes the result of an attempt from how its program ended and what it
// reported in the file at path.
func judge(sr *shim.Result, path string, spec *wire.Spec) pipeline.Result {
	res := pipeline.Result{Outcome: sr.Outcome, Reason: sr.Reason, Exit: sr.Exit, LogBytes: sr.LogBytes, Lost: sr.Lost}
	rep, err := readReport(path)
	if err == nil && sr.EventsError != "" {
		err = errors.New(sr.EventsError)
	}
	res.Links = rep.links
	res.CancelRun = rep.cancel.yes
	var large []string
	if res.Records, large = packed("records", rep.records, pipeline.MaxRecords); len(large) > 0 {
		rep.problems = append(rep.problems, large...)
	}
	if res.Outcome == pipeline.Success {
		settle(&res, rep, err, spec)
	}
	if res.Outcome != pipeline.Success && res.Outputs == nil {
		// What it made before it failed is what its clean-up has to know.
		res.Outputs = fitting(&spec.Outputs, rep.outputs)
	}
	if sr.LogLost > 0 {
		res.Reason = strings.TrimPrefix(fmt.Sprintf("%s; %d bytes of its log could not be kept: %s", res.Reason, sr.LogLost, sr.LogError), "; ")
	}
	return res
}

// settle decides what a program that ended well has achieved.
func settle(res *pipeline.Result, rep report, err error, spec *wire.Spec) {
	if err != nil {
		res.Outcome, res.Reason = pipeline.Error, fmt.Sprintf("what the task reported in MAESTRO_EVENTS cannot be read: %v", err)
		return
	}
	outputs, problems := checkOutputs(&spec.Outputs, rep.outputs, rep.cancel.yes || rep.notNeeded.yes)
	problems = append(rep.problems, problems...)
	switch {
	case len(problems) > 0:
		if more := len(problems) - mostProblems; more > 0 {
			problems = append(problems[:mostProblems], fmt.Sprintf("and %d more", more))
		}
		res.Outcome, res.Reason = pipeline.Error, strings.Join(problems, "; ")
	case rep.cancel.yes:
		res.Outcome, res.Reason = pipeline.Cancelled, says("the task asked to cancel the run", rep.cancel.why)
	case rep.notNeeded.yes:
		res.Outcome, res.Reason, res.Outputs = pipeline.NotNeeded, says("there was nothing to do", rep.notNeeded.why), outputs
	default:
		res.Outputs = outputs
	}
}

func says(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + clip(why)
}

// checkOutputs returns the outputs as a JSON object, nil when there are none, and
// what is wrong with them, each named with the type it should have. A task that
// stops early may leave outputs out.
func checkOutputs(t *pipeline.Type, got map[string]json.RawMessage, early bool) (json.RawMessage, []string) {
	var problems []string
	got = maps.Clone(got)
	declared := map[string]bool{}
	for _, f := range t.Fields {
		declared[f.Name] = true
		v, ok := got[f.Name]
		switch {
		case ok:
			for _, p := range f.Type.CheckJSON(v) {
				problems = append(problems, fmt.Sprintf("output %s must be %s, and the task reported %s: %s", f.Name, f.Type, brief(v), p))
			}
		case f.Default != nil:
			got[f.Name] = f.Default
		case !f.Optional && !early:
			problems = append(problems, fmt.Sprintf("output %s of type %s was not reported", f.Name, f.Type))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		switch {
		case declared[name]:
		case !t.Open:
			problems = append(problems, fmt.Sprintf("output %s is not declared by the task's definition; the task reported %s", brief([]byte(name)), brief(got[name])))
		case t.Rest != nil:
			for _, p := range t.Rest.CheckJSON(got[name]) {
				problems = append(problems, fmt.Sprintf("output %s must be %s, and the task reported %s: %s", brief([]byte(name)), t.Rest, brief(got[name]), p))
			}
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return packed("outputs", got, pipeline.MaxOutputs)
}

// packed returns the values as a JSON object, nil when there are none, or says that
// they are too large.
func packed(what string, values map[string]json.RawMessage, most int) (json.RawMessage, []string) {
	if len(values) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(values)
	if err != nil {
		return nil, []string{what + ": " + err.Error()}
	}
	if len(b) > most {
		return nil, []string{fmt.Sprintf("the %s have %d bytes, most is %d; larger things are files", what, len(b), most)}
	}
	return b, nil
}

// fitting returns those of the outputs that are of their type, as a JSON object; nil
// when there are none, or when they are too large.
func fitting(t *pipeline.Type, got map[string]json.RawMessage) json.RawMessage {
	kept := map[string]json.RawMessage{}
	for name, v := range got {
		i := slices.IndexFunc(t.Fields, func(f pipeline.Field) bool { return f.Name == name })
		switch {
		case i >= 0 && len(t.Fields[i].Type.CheckJSON(v)) > 0,
			i < 0 && !t.Open,
			i < 0 && t.Rest != nil && len(t.Rest.CheckJSON(v)) > 0:
		default:
			kept[name] = v
		}
	}
	b, _ := packed("outputs", kept, pipeline.MaxOutputs)
	return b
}

// brief shows a piece of what a task wrote.
func brief(b []byte) string {
	const most = 80
	s := strings.ToValidUTF8(string(bytes.TrimSpace(b[:min(len(b), most)])), "?")
	if len(b) > most {
		s += "…"
	}
	return s
}
