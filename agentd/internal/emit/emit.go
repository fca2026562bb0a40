// Package emit is the plugins' side of the channel to the agent, for programs
// that would rather call a command than write JSON: "agentd emit" appends a line
// to the file that $MAESTRO_EVENTS names, and "agentd env" turns the env field of
// a task into shell assignments. It is called once for each value by shell
// scripts, so it starts nothing, and imports nothing of ours. It does not judge what a task
// reports; the agent does, once the task has ended.
package emit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Usage of "agentd emit".
const Usage = `Tell the agent something about the running task.

  agentd emit output NAME VALUE        an output that is text
  agentd emit output-json NAME JSON    an output of any type
  agentd emit record NAME JSON         a value to keep with the task
  agentd emit link NAME URL            a page that people should find
  agentd emit progress X               how much is done, 0 to 1
  agentd emit waiting TEXT             what the task waits for; "" when it goes on
  agentd emit text TEXT                what the task is doing
  agentd emit not-needed [WHY]         there is nothing to do; the run ends well
  agentd emit cancel [WHY]             cancel the run
`

// Exit codes: the agent could not be told, and the command is wrong.
const (
	exitFailed = 1
	exitUsage  = 2
)

// maxLine bounds one event: somewhat more than the 128 KiB that all outputs of a
// task may take, so that the agent gets to say what is too large.
const maxLine = 132 << 10

// Event is one line of $MAESTRO_EVENTS. Exactly one member is set.
type Event struct {
	Output    *Output  `json:"output,omitempty"`
	Record    *Output  `json:"record,omitempty"` // kept with the task, for nobody but people
	Link      *Link    `json:"link,omitempty"`
	Progress  *float64 `json:"progress,omitempty"`
	Waiting   *string  `json:"waiting,omitempty"`
	Text      *string  `json:"text,omitempty"`
	NotNeeded any      `json:"not_needed,omitempty"` // true, or why
	Cancel    any      `json:"cancel,omitempty"`     // true, or why
}

// Output is a named value, as for the tasks that follow.
type Output struct {
	Name  string          `json:"name"`
	Value json.RawMessage `json:"value"`
}

// Link is a page, http or https.
type Link struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// Run is "agentd emit": args are what follows. It appends one line to the file
// that env("MAESTRO_EVENTS") names, in one write, so that programs running side by
// side do not mix their lines. Complaints go to out, which is the task's log. The
// result is the exit code.
func Run(args []string, env func(string) string, out io.Writer) int {
	e, err := parse(args)
	if err != nil {
		fmt.Fprintf(out, "agentd emit: %v\n\n%s", err, Usage)
		return exitUsage
	}
	if err := appendEvent(env("MAESTRO_EVENTS"), e); err != nil {
		fmt.Fprintf(out, "agentd emit %s: %v\n", args[0], err)
		return exitFailed
	}
	return 0
}

// wants is how many arguments each verb takes.
var wants = map[string]struct{ least, most int }{
	"output": {2, 2}, "output-json": {2, 2}, "record": {2, 2}, "link": {2, 2}, "progress": {1, 1}, "waiting": {1, 1}, "text": {1, 1},
	"not-needed": {0, 1}, "cancel": {0, 1},
}

func parse(args []string) (Event, error) {
	if len(args) == 0 {
		return Event{}, errors.New("nothing to tell")
	}
	verb, rest := args[0], args[1:]
	w, known := wants[verb]
	if !known {
		return Event{}, fmt.Errorf("%q is not one of the verbs", verb)
	}
	if len(rest) < w.least || len(rest) > w.most {
		return Event{}, fmt.Errorf("%s takes %d arguments and got %d; quote a value that has spaces", verb, w.most, len(rest))
	}
	for _, a := range rest {
		if !utf8.ValidString(a) {
			return Event{}, fmt.Errorf("%s: %.40q is not UTF-8", verb, a)
		}
	}
	return event(verb, rest)
}

func event(verb string, rest []string) (Event, error) {
	switch verb {
	case "output":
		value, err := json.Marshal(rest[1])
		return output(rest[0], value, err)
	case "output-json":
		value := json.RawMessage(rest[1])
		if !json.Valid(value) {
			return Event{}, fmt.Errorf("output-json %s: %.60q is not JSON; for text use output", rest[0], rest[1])
		}
		return output(rest[0], value, nil)
	case "record":
		value := json.RawMessage(rest[1])
		if rest[0] == "" || !json.Valid(value) {
			return Event{}, fmt.Errorf("record %q: %.60q is not JSON, or the name is empty; text is quoted", rest[0], rest[1])
		}
		return Event{Record: &Output{rest[0], value}}, nil
	case "link":
		if !strings.HasPrefix(rest[1], "https://") && !strings.HasPrefix(rest[1], "http://") {
			return Event{}, fmt.Errorf("link: %.100q is neither http nor https", rest[1])
		}
		return Event{Link: &Link{rest[0], rest[1]}}, nil
	case "progress":
		x, err := strconv.ParseFloat(rest[0], 64)
		if err != nil || !(x >= 0 && x <= 1) {
			return Event{}, fmt.Errorf("progress: %.40q is not a number from 0 to 1", rest[0])
		}
		return Event{Progress: &x}, nil
	case "waiting":
		return Event{Waiting: &rest[0]}, nil
	case "text":
		return Event{Text: &rest[0]}, nil
	case "not-needed":
		return Event{NotNeeded: why(rest)}, nil
	default:
		return Event{Cancel: why(rest)}, nil
	}
}

func output(name string, value json.RawMessage, err error) (Event, error) {
	if name == "" {
		return Event{}, errors.New("output: the name is empty")
	}
	return Event{Output: &Output{name, value}}, err
}

func why(rest []string) any {
	if len(rest) == 0 || rest[0] == "" {
		return true
	}
	return rest[0]
}

func appendEvent(path string, e Event) error {
	if path == "" {
		return errors.New("MAESTRO_EVENTS is not set: this works only in a task; to try a plugin by hand, set it to a file")
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(line) > maxLine {
		return fmt.Errorf("%d bytes are too many, most is %d; write it to a file in the workspace instead", len(line), maxLine)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|noFollow, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}
