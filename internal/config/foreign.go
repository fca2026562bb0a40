package config

import (
	"slices"
	"strings"

	"cuelang.org/go/cue/errors"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// unknownField explains a field that the schema or a manifest does not have.
func (x *explainer) unknownField(p []string, e errors.Error) pipeline.Diagnostic {
	p = x.firstUnknown(p)
	last := p[len(p)-1]
	pos, exact := pipeline.Position{}, false
	if x.idx != nil {
		pos, exact = x.idx.label(p...)
	}
	if !exact {
		pos = x.at(p, e)
	}
	if len(p) == 4 && p[0] == "compositions" && p[2] == "tasks" {
		d := diag(codeName, pos, "%q cannot name a task", plain(last))
		d.Note = nameRule
		if better := asName(last); better != last {
			d.Help = "write " + quoteLabel(better)
		}
		return d
	}
	if len(p) == 4 && p[2] == "params" || len(p) == 6 && p[2] == "triggers" && p[4] == "params" {
		return badKey("a param", last, pos)
	}
	parent := p[:len(p)-1]
	known := fieldNames(x.declared(parent))
	def := x.taskDefinition(p)
	if def != nil && len(p) == 6 && p[4] == "fields" {
		d := diag(codeField, pos, "task %q (%s) has no field %q", p[3], def.uses, plain(last))
		d.Note = fieldsNote(def)
		return withHelp(d, x.meantField(p, known, def))
	}
	d := diag(codeField, pos, "%s has no field %q", x.subject(parent), plain(last))
	if len(known) > 0 {
		d.Note = "it may have " + strings.Join(known, ", ")
	}
	return withHelp(d, x.meantField(p, known, def))
}

// firstUnknown cuts a path after the first name that is not declared: CUE names
// what is inside it as well.
func (x *explainer) firstUnknown(p []string) []string {
	if len(p) > 4 && p[0] == "compositions" && p[2] == "tasks" && !nameRE.MatchString(p[3]) {
		return p[:4]
	}
	for i := 2; i < len(p)-1; i++ {
		parent := x.declared(p[:i])
		if names := fieldNames(parent); len(names) > 0 && !child(parent, p[i]).Exists() {
			return p[:i+1]
		}
	}
	return p
}

func fieldsNote(def *definition) string {
	if len(def.fields) == 0 {
		return def.name + " has no fields"
	}
	return def.name + " has " + strings.Join(def.fieldNames(), ", ")
}

// meantField suggests what was meant by a field that does not exist: one of a
// similar name, one of another place, or what other systems call it. What is
// suggested is then not missed as well.
func (x *explainer) meantField(p, known []string, def *definition) string {
	last, parent := p[len(p)-1], p[:len(p)-1]
	mean := func(path ...string) {
		if x.meant != nil {
			x.meant[keyOf(path)] = true
		}
	}
	inTask := len(p) == 5 && p[0] == "compositions" && p[2] == "tasks"
	if inTask && def != nil && def.field(last) != nil {
		mean(append(slices.Clone(parent), "fields", last)...)
		return "it is a field of " + def.name + ": write fields: " + last + ": …"
	}
	if len(p) == 6 && p[4] == "fields" {
		if task := x.declared(p[:4]); child(task, last).Exists() {
			return "it belongs to the task, beside fields and not in it"
		}
	}
	if slices.Contains(known, "with") && slices.Contains([]string{"params", "inputs", "args", "arguments", "parameters"}, last) {
		mean(append(slices.Clone(parent), "with")...)
		return "what is called gets its params as with: {…}; within a field called params, that name would mean the field itself"
	}
	if help := x.foreignWord(p, known, def, mean); help != "" {
		return help
	}
	if near := nearest(last, known); near != "" {
		mean(append(slices.Clone(parent), near)...)
		return didYouMean(last, known)
	}
	return ""
}

// foreignWord says what is written here instead of a word of other systems, "" when it
// is none.
func (x *explainer) foreignWord(p, known []string, def *definition, mean func(path ...string)) string {
	last := p[len(p)-1]
	inTask := len(p) == 5 && p[0] == "compositions" && p[2] == "tasks"
	var words []foreign
	switch {
	case inTask:
		words = taskWords
	case len(p) == 3 && p[0] == "compositions":
		words = compositionWords
	case len(p) == 5 && p[2] == "triggers":
		words = triggerWords
	}
	if len(p) == 6 && p[4] == "fields" {
		words = taskWords
	}
	if len(p) > 3 && p[len(p)-2] == "agent" {
		words = agentWords
	}
	for _, w := range words {
		if !w.has(last) {
			continue
		}
		for _, f := range w.fields {
			switch {
			case f.name == "" || slices.Contains(known, f.name):
				return f.help
			case strings.HasPrefix(f.name, "fields.") && def != nil && def.field(f.name[len("fields."):]) != nil:
				mean(append(slices.Clone(p[:4]), strings.Split(f.name, ".")...)...)
				return f.help
			}
		}
	}
	return ""
}

// foreign is a word of other systems, in lower case and without "-" and "_", and
// what is written here instead: the first whose field exists, "" being always true.
type foreign struct {
	words  string
	fields []instead
}

func (w foreign) has(word string) bool {
	return slices.Contains(strings.Fields(w.words), strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(word)))
}

type instead struct{ name, help string }

var taskWords = []foreign{
	{"dependson dependencies depends requires after upstream need waitfor stage previous", []instead{{"needs", `tasks that must end first are named in needs: ["NAME"]; reading an output of a task orders them by itself`}}},
	{"script scripts command commands cmd exec bash sh powershell entrypoint beforescript afterscript", []instead{{"fields.script", `write fields: script: "…"`}, {"", "what a task does is in its fields; shell.#Run has script"}}},
	{"steps step jobs stages actions", []instead{{"", "a task is one step: write each step as a task of its own, in order by needs, or as a line of one script"}}},
	{"env environment variables vars", []instead{{"fields.env", `write fields: env: NAME: "…"`}, {"", "a program sees its fields only"}}},
	{"if when only except rules condition unless", []instead{{"when", `write when: and a condition, such as when: event.branch == "main"`}, {"run", `run: "always" and run: "on-failure" say when a task runs; anything else is for the program to decide`}}},
	{"finally always post cleanup ensure", []instead{{"run", `write run: "always"`}}},
	{"onerror onfail rescue failure", []instead{{"run", `a task with run: "on-failure" and needs runs when one of those fails`}}},
	{"allowfailure continueonerror ignoreerrors ignorefailure softfail", []instead{{"onFailure", `write onFailure: "continue"`}}},
	{"retry maxretries maxattempts attempts retrycount", []instead{{"retries", "write retries: {max: 2}"}}},
	{"timeoutminutes timeoutseconds timeoutinminutes deadline maxduration", []instead{{"timeout", `write timeout: "30m"`}}},
	{"runson runner agents node nodes nodeselector labels tags machine pool queue host platform os arch", []instead{{"agent", `where a task runs is agent: {pool: "NAME", facts: kernel: "Linux"}`}}},
	{"image container docker services", []instead{{"", "tasks run on the agent itself, not in an image; which agents is said by agent: facts"}}},
	{"with args arguments inputs input params parameters config options settings properties", []instead{{"fields", "what a task takes is in fields: {…}"}}},
	{"matrix strategy parallel foreach witem withitems loop parallelism", []instead{{"each", "a task for each item of a list is written with each: items: […]"}, {"", "write one task for each; CUE can make them: for x in [\"a\", \"b\"] {\"test-\\(x)\": …}"}}},
	{"workingdirectory workdir cwd dir directory", []instead{{"fields.workdir", `write fields: workdir: "…"`}, {"", "the working directory is the run's workspace"}}},
	{"artifacts artifact cache upload download", []instead{{"", "files stay in the workspace of the run, where its later tasks on that agent find them"}}},
	{"secrets secret credentials", []instead{{"", `a secret is named in the field that takes it: fields: token: secret: "NAME"`}}},
	{"title displayname label comment", []instead{{"description", `write description: "…"`}}},
	{"composition message approvers url", []instead{{"", "what a task takes is in its fields: fields: {…}"}}},
	{"template templateref", []instead{{"", "a task is made of a definition: NAME: shell.#Run & {…}, or of one of your own, NAME: #Deploy & {…}"}}},
	{"permissions", []instead{{"", "what runs may do is in policy, in the default branch: secrets, pools and approvals"}}},
	{"approval input confirm", []instead{{"", "a task that waits for people is NAME: maestro.#Approval & {fields: message: \"…\"}"}}},
	{"disabled enabled skip", []instead{{"", "a composition has suspend: true; a task is left out by removing it"}}},
	{"id", []instead{{"", "a task's name is what stands before the colon"}}},
	{"action plugin type kind task job", []instead{{"uses", "a task is made of a plugin's definition: NAME: shell.#Run & {…}"}}},
}

var agentWords = []foreign{
	{"label labels tags tag node runson os image container docker", []instead{{"facts", `which agents is said by facts: agent: facts: kernel: "Linux", or by a pool: agent: pool: "NAME"`}}},
	{"name group queue", []instead{{"pool", `write agent: pool: "NAME"`}}},
}

var triggerWords = []foreign{
	{"schedule schedules timer at interval", []instead{{"cron", `write cron: schedule: "0 2 * * *"`}, {"", "the clock starts no runs"}}},
	{"mergerequest pr change proposal", []instead{{"pullRequest", "write pullRequest: {}"}, {"", "proposed changes start no runs"}}},
	{"workflowdispatch dispatch button api", []instead{{"manual", "write manual: {}"}, {"", "no person starts runs"}}},
	{"workflowrun upstream pipeline workflow composition finished", []instead{{"after", `write after: composition: "NAME"`}}},
	{"release tags", []instead{{"tag", `write tag: tags: ["v*"]`}}},
	{"http hook url repositorydispatch", []instead{{"webhook", `write webhook: {id: "NAME", secret: secret: "NAME"}`}}},
	{"pollscm poll scm", []instead{{"push", `pushes are seen by themselves: write push: branches: ["main"]`}}},
	{"branch branches paths", []instead{{"push", `it belongs to an event: push: branches: ["main"]`}}},
}

var compositionWords = []foreign{
	{"jobs steps stages job step actions spec pipeline workflow nodes dag", []instead{{"tasks", "they are called tasks: tasks: NAME: shell.#Run & {…}"}}},
	{"on trigger when events event push schedule cron only if webhook rules", []instead{{"triggers", `what starts it is in triggers: [{push: branches: ["main"]}]`}}},
	{"inputs input parameters parameter variables vars args arguments with", []instead{{"params", "typed inputs are params: NAME: string"}}},
	{"env environment", []instead{{"", "what several tasks share is a field of CUE beside them, as _env: {…}, used as fields: env: _env"}}},
	{"runson runner agents node labels tags machine pool queue os", []instead{{"agent", `where its tasks run is agent: {pool: "NAME", facts: kernel: "Linux"}`}}},
	{"image container docker services", []instead{{"", "tasks run on the agent itself, not in an image; which agents is said by agent: facts"}}},
	{"entrypoint templates", []instead{{"", "all tasks of a composition run, in the order that needs and outputs give; there is no entry point"}}},
	{"permissions", []instead{{"", "what runs may do is in policy, in the default branch: secrets, pools and approvals"}}},
	{"defaults", []instead{{"", "what all compositions share is written in compositions/ops.cue: compositions: [string]: timeout: \"1h\""}}},
	{"include extends", []instead{{"", "a template is a CUE definition in a package of its own, imported and used as NAME: lib.#Service & {…}"}}},
	{"disabled enabled paused active", []instead{{"suspend", "write suspend: true"}}},
	{"secrets secret", []instead{{"", `secrets are declared beside compositions, and named in the field that takes one: token: secret: "NAME"`}}},
	{"timeoutminutes deadline", []instead{{"timeout", `write timeout: "30m"`}}},
	{"title displayname label labels", []instead{{"description", `write description: "…"`}}},
	{"retries retry", []instead{{"", "each task has its own retries: {max: 2}"}}},
	{"needs dependson", []instead{{"", "needs belongs to a task"}}},
	{"fields script command", []instead{{"", `it belongs to a task: tasks: NAME: shell.#Run & {fields: script: "…"}`}}},
}

// namesAt are the names that may be written at a path. They are the same for all
// tasks of a definition, and are kept.
func (x *explainer) namesAt(p []string) []string {
	shape := slices.Clone(p)
	shape[1] = ""
	if len(p) > 3 {
		shape[3] = ""
		if def := x.taskDefinition(p); def != nil {
			shape[3] = def.uses
		}
	}
	key := keyOf(shape)
	names, ok := x.batch.names[key]
	if !ok {
		names = fieldNames(x.declared(p))
		x.batch.names[key] = names
	}
	return names
}

func isIndex(name string) bool { return strings.Trim(name, "0123456789") == "" }

// undeclared reports the names that a composition gives where the schema or a
// manifest has others. CUE does so, too, but not all of them once it has found a
// conflict, and none where a definition is embedded.
func (w *work) undeclared() (out []pipeline.Diagnostic, at map[string]bool) {
	at = map[string]bool{}
	look := func(path ...string) {
		known := w.x.namesAt(path)
		for _, name := range w.all.children(path...) {
			if isIndex(name) && path[len(path)-1] != "triggers" {
				continue // a list where a struct is wanted; CUE says so
			}
			if len(known) == 0 || slices.Contains(known, name) || strings.HasPrefix(name, "_") || strings.HasPrefix(name, "#") {
				continue
			}
			p := append(slices.Clone(path), name)
			if child(w.x.declared(path), name).Exists() {
				continue // by a pattern
			}
			at[keyOf(p)] = true
			out = append(out, w.x.unknownField(p, nil))
		}
	}
	look(w.path()...)
	for _, name := range w.all.children(w.path("tasks")...) {
		if !nameRE.MatchString(name) {
			continue
		}
		look(w.path("tasks", name)...)
		if len(w.all.at(w.path("tasks", name, "uses")...)) == 0 { // else it is not made of what it says
			look(w.path("tasks", name, "fields")...)
		}
		look(w.path("tasks", name, "retries")...)
	}
	for _, i := range w.all.children(w.path("triggers")...) {
		if i[0] < '0' || i[0] > '9' {
			continue // no list
		}
		look(w.path("triggers", i)...)
		for _, event := range w.all.children(w.path("triggers", i)...) {
			if event != "params" {
				look(w.path("triggers", i, event)...)
			}
		}
	}
	return out, at
}
