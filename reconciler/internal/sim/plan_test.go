package sim_test

import (
	"encoding/json"
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// schedule is one simulation, drawn before it begins: what there is to do, and what
// goes wrong when. Its JSON in testdata/schedules makes a test of it.
type schedule struct {
	Agents  int      `json:"agents"`
	Commits []commit `json:"commits"`
	Faults  []mishap `json:"faults"`
}

// commit is what one push asks for.
type commit struct {
	After seconds   `json:"after"`
	Runs  []runPlan `json:"runs"`
}

type runPlan struct {
	Tasks []task `json:"tasks"`
}

type task struct {
	Needs []int   `json:"needs,omitempty"`
	For   seconds `json:"for"`
	Lines int     `json:"lines"`
	Once  bool    `json:"once,omitempty"`
	// Fails is how many tries of it fail before one succeeds.
	Fails     int     `json:"fails,omitempty"`
	LostAfter seconds `json:"lost_after"`
}

// mishap is one thing that goes wrong.
type mishap struct {
	After seconds `json:"after"` // the fault before it
	Kind  string  `json:"kind"`
	Agent int     `json:"agent"`
	N     int     `json:"n"`
	For   seconds `json:"for"`
}

// seconds is a time with its unit, so that schedules are short to read.
type seconds float64

func (s seconds) duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// Kinds of fault.
const (
	killServer     = "kill server"
	killServerMid  = "kill server at its N-th message"
	jumpClock      = "set the server's clock"
	killAgent      = "kill agent"
	killAgentMid   = "kill agent in its next start, at step N"
	killShim       = "kill shim"
	cutPower       = "cut the agent's power"
	partition      = "partition"
	deafServer     = "nothing reaches the server"
	deafAgent      = "nothing reaches the agent"
	slowNetwork    = "slow network"
	sayTwice       = "frames arrive twice"
	overtake       = "frames overtake each other"
	replay         = "old frames arrive again"
	fullServerDisk = "the server's disk is full"
	fullAgentDisk  = "the agent's disk is full"
	forgeDown      = "the forge is down"
	cancelRun      = "cancel a run"
)

var kinds = []string{
	killServer, killServerMid, killServerMid, killServerMid, jumpClock, killAgent, killAgent, killAgentMid, killAgentMid, killShim, cutPower,
	partition, partition, deafServer, deafAgent, slowNetwork, sayTwice, overtake, replay, fullServerDisk, fullAgentDisk, forgeDown, cancelRun,
}

func drawSchedule(t *rapid.T) schedule {
	s := schedule{Agents: rapid.IntRange(1, 3).Draw(t, "agents")}
	for range rapid.IntRange(1, 3).Draw(t, "commits") {
		c := commit{After: seconds(rapid.IntRange(0, 60).Draw(t, "push after"))}
		for range 2 {
			var r runPlan
			for i := range rapid.IntRange(1, 4).Draw(t, "tasks") {
				r.Tasks = append(r.Tasks, drawTask(t, i))
			}
			c.Runs = append(c.Runs, r)
		}
		s.Commits = append(s.Commits, c)
	}
	for range rapid.IntRange(0, 16).Draw(t, "faults") {
		s.Faults = append(s.Faults, drawFault(t, s.Agents))
	}
	return s
}

func drawTask(t *rapid.T, i int) task {
	k := task{
		For:       seconds(rapid.SampledFrom([]float64{0, 0.05, 0.5, 2, 10, 40, 200}).Draw(t, "for")),
		Lines:     rapid.SampledFrom([]int{0, 1, 7, 40, 3000}).Draw(t, "lines"),
		Once:      rapid.IntRange(0, 3).Draw(t, "once") == 0,
		LostAfter: seconds(rapid.SampledFrom([]float64{90, 120, 600}).Draw(t, "lost after")),
	}
	if !k.Once && rapid.IntRange(0, 7).Draw(t, "fails") == 0 {
		k.Fails = rapid.IntRange(1, 2).Draw(t, "failures")
	}
	for j := range i {
		if rapid.Bool().Draw(t, "needs") {
			k.Needs = append(k.Needs, j)
		}
	}
	return k
}

func drawFault(t *rapid.T, agents int) mishap {
	f := mishap{
		After: seconds(rapid.SampledFrom([]float64{0, 0.001, 0.03, 0.4, 2, 7, 20}).Draw(t, "after")),
		Kind:  rapid.SampledFrom(kinds).Draw(t, "kind"),
		Agent: rapid.IntRange(0, agents-1).Draw(t, "agent"),
		N:     rapid.IntRange(1, 30).Draw(t, "n"),
		For:   seconds(rapid.SampledFrom([]float64{0, 0.2, 3, 16, 45, 100, 700}).Draw(t, "for")),
	}
	// Hours cost time to simulate, so they are few.
	if rapid.IntRange(0, 30).Draw(t, "long") == 0 {
		f.For = 7200
	}
	return f
}

func (s *schedule) String() string {
	b, err := json.Marshal(s)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// limited is the composition of which one run goes at a time.
const limited pipeline.CompositionName = "c0"

// configuration is what the i-th commit declares.
func (s *schedule) configuration(i int) (pipeline.Config, error) {
	cfg := pipeline.Config{
		Commit:  commitID(i),
		Plugins: []pipeline.Plugin{{Name: "shell", Tree: "git:1", Programs: []pipeline.Program{{Argv: []string{"./run"}}}}},
	}
	for j, r := range s.Commits[i].Runs {
		c := pipeline.Composition{
			Name:     pipeline.CompositionName(fmt.Sprintf("c%d", j)),
			Triggers: []pipeline.Trigger{{Push: &pipeline.PushTrigger{Branches: []string{"main"}}}},
		}
		if c.Name == limited {
			c.MaxRunning = 1
		}
		for k, t := range r.Tasks {
			c.Tasks = append(c.Tasks, t.spec(k))
		}
		b, err := json.Marshal(c)
		if err != nil {
			return cfg, err
		}
		c.Digest = pipeline.DigestOf(b)
		cfg.Compositions = append(cfg.Compositions, c)
	}
	return cfg, nil
}

func commitID(i int) pipeline.CommitID { return pipeline.CommitID(fmt.Sprintf("%040x", i+1)) }

func taskName(i int) pipeline.TaskName { return pipeline.TaskName(fmt.Sprintf("t%d", i)) }

func (k *task) spec(i int) pipeline.Task {
	t := pipeline.Task{
		Name: taskName(i), Plugin: "shell", Uses: "shell/run", Priority: -1,
		Outputs: pipeline.Type{Kind: pipeline.KindStruct, Open: true},
		Fields:  fmt.Appendf(nil, `{"for":%g,"lines":%d,"fails":%d}`, float64(k.For), k.Lines, k.Fails),
		// A loss is made up for as often as it takes: what is lost for good is a defect.
		Retries:   pipeline.Retries{Max: 100, Backoff: pipeline.Duration(time.Second), On: []pipeline.State{pipeline.Failure}},
		LostAfter: pipeline.Duration(k.LostAfter.duration()),
	}
	if k.Once {
		t.Effect = pipeline.Once
	}
	for _, n := range k.Needs {
		t.Needs = append(t.Needs, taskName(n))
	}
	return t
}
