package testkit_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/testkit"
)

// generated is an ops repository that nobody wrote: names, graph and plugin come
// from a seed. Each task adds one to the sum of what the tasks before it gave, and
// leaves marks when it begins and ends.
type generated struct {
	*rand.Rand
	dir   string
	trace string
	used  map[string]bool

	composition string
	plugin      string
	definition  string // of the plugin's only task
	field, text string // names of the plugin's fields
	output      string
	tasks       []generatedTask
}

type generatedTask struct {
	name   string
	needs  []int // earlier tasks
	plugin bool
	value  int
}

// name makes one that is valid and awkward: with dashes and digits, one letter, or
// a word that CUE keeps to itself.
func (g *generated) name() string {
	for {
		var name string
		switch g.IntN(4) {
		case 0:
			words := []string{"for", "if", "in", "let", "null", "true", "import", "package", "tasks", "outputs", "string", "len"}
			name = words[g.IntN(len(words))]
		case 1:
			name = string(rune('a' + g.IntN(26)))
		default:
			const letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
			name = string(rune('a' + g.IntN(26)))
			for range 1 + g.IntN(20) {
				name += string(letters[g.IntN(len(letters))])
			}
		}
		if !g.used[name] {
			g.used[name] = true
			return name
		}
	}
}

func generate(t *testing.T, seed uint64) *generated {
	t.Helper()
	dir := t.TempDir()
	g := &generated{
		Rand: rand.New(rand.NewPCG(seed, 0)), dir: dir, trace: filepath.Join(dir, "trace"), used: map[string]bool{"shell": true, "git": true},
	}
	g.composition, g.output = g.name(), g.name()
	// A package's name is an identifier, and no word of the language.
	g.plugin = "p" + strings.ReplaceAll(g.name(), "-", "0")
	g.definition, g.field, g.text = g.name(), g.name(), g.name()
	for i := range 1 + g.IntN(12) {
		k := generatedTask{name: g.name(), plugin: g.IntN(3) == 0, value: 1}
		for j := range i {
			if g.IntN(3) == 0 {
				k.needs = append(k.needs, j)
				if !k.plugin || len(k.needs) == 1 {
					k.value += g.tasks[j].value
				}
			}
		}
		g.tasks = append(g.tasks, k)
	}
	return g
}

// script adds up. The first tasks do so after two of them have begun, which proves
// that they run side by side; more than two may have to take turns.
func (g *generated) script(k generatedTask, sum string) string {
	var wait string
	if len(k.needs) == 0 {
		roots := 0
		for _, k := range g.tasks {
			if len(k.needs) == 0 {
				roots++
			}
		}
		wait = fmt.Sprintf("i=0\nwhile [ $(grep -c '^begin .* first$' %[1]q) -lt %[2]d ]; do i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done\n", g.trace, min(roots, 2))
	}
	mark := "later"
	if wait != "" {
		mark = "first"
	}
	return fmt.Sprintf("echo \"begin $MAESTRO_TASK %s\" >> %q\n%sn=$((%s))\n\"$MAESTRO_AGENTD\" emit output-json %s \"$n\"\necho \"end $MAESTRO_TASK $n\" >> %q\n",
		mark, g.trace, wait, sum, g.output, g.trace)
}

func (g *generated) task(k generatedTask) string {
	ref := func(i int) string { return fmt.Sprintf("tasks.%q.outputs.%q", g.tasks[i].name, g.output) }
	var b strings.Builder
	if k.plugin {
		fmt.Fprintf(&b, "\t\t%q: %s.#Do & {\n\t\t\tfields: {%q: ", k.name, g.plugin, g.field)
		if len(k.needs) == 0 {
			fmt.Fprint(&b, "0")
		} else {
			fmt.Fprint(&b, ref(k.needs[0]))
		}
		fmt.Fprintf(&b, ", %q: %s}\n", g.text, strconv.Quote(g.script(k, "FIELD_"+strings.ToUpper(strings.ReplaceAll(g.field, "-", "_"))+" + 1")))
		var needs []string
		for _, i := range k.needs {
			needs = append(needs, strconv.Quote(g.tasks[i].name))
		}
		fmt.Fprintf(&b, "\t\t\tneeds: [%s]\n\t\t}\n", strings.Join(needs, ", "))
		return b.String()
	}
	sum, env := "1", ""
	for n, i := range k.needs {
		sum += fmt.Sprintf(" + D%d", n)
		env += fmt.Sprintf("D%d: \"\\(%s)\", ", n, ref(i))
	}
	fmt.Fprintf(&b, "\t\t%q: shell.#Run & {\n\t\t\tfields: {script: %s, env: {%s}}\n\t\t\toutputs: %q: int & >=1\n\t\t}\n", k.name, strconv.Quote(g.script(k, sum)), env, g.output)
	return b.String()
}

func (g *generated) write(t *testing.T) string {
	t.Helper()
	files := testkit.Files(testkit.Ops(), map[string]string{
		"plugins/" + g.plugin + "/plugin.cue": fmt.Sprintf(`package %s

import "github.com/maestro-cd/maestro"

manifest: maestro.#Plugin & {
	description: "made up"
	programs: [{argv: ["./do"]}]
}

#Do: maestro.#Task & {
	uses: "%s/%s"
	fields: {
		%q!: int & >=0
		%q!: string
	}
	outputs: %q: int & >=1
}
`, g.plugin, g.plugin, g.definition, g.field, g.text, g.output),
		"plugins/" + g.plugin + "/do": fmt.Sprintf("#!/bin/sh\n[ \"$MAESTRO_USES\" = %s/%s ] || exit 9\neval \"$FIELD_%s\"\n",
			g.plugin, g.definition, strings.ToUpper(strings.ReplaceAll(g.text, "-", "_"))),
	})
	// The order in the file is not the order of the graph.
	var tasks strings.Builder
	for _, i := range g.Perm(len(g.tasks)) {
		tasks.WriteString(g.task(g.tasks[i]))
	}
	body := fmt.Sprintf("compositions: %q: {\n\ttasks: {\n%s\t}\n\ttriggers: [{push: {}}]\n}\n", g.composition, tasks.String())
	header := "package ops\n\nimport (\n"
	for name, path := range map[string]string{"shell.": "github.com/maestro-cd/maestro/plugins/shell", g.plugin + ".": "example.com/ops/plugins/" + g.plugin} {
		if strings.Contains(body, ": "+name+"#") {
			header += fmt.Sprintf("\t%q\n", path)
		}
	}
	files["compositions/"+g.composition+"/made.cue"] = header + ")\n\n" + body
	dir := filepath.Join(g.dir, "ops")
	for name, text := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// check reads the marks: every task once, with the right value, and none before
// those that it needs.
func (g *generated) check(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(g.trace)
	if err != nil {
		t.Fatal(err)
	}
	marks := strings.Split(strings.TrimSpace(string(b)), "\n")
	at := func(k generatedTask, begin bool) int {
		word := fmt.Sprintf("end %s %d", k.name, k.value)
		if begin {
			word = "begin " + k.name + " later"
			if len(k.needs) == 0 {
				word = "begin " + k.name + " first"
			}
		}
		return slices.Index(marks, word)
	}
	if len(marks) != 2*len(g.tasks) {
		t.Errorf("%d marks of %d tasks", len(marks), len(g.tasks))
	}
	for _, k := range g.tasks {
		begin, end := at(k, true), at(k, false)
		if begin < 0 || end < begin {
			t.Errorf("task %s begins at mark %d and ends with %d at mark %d", k.name, begin, k.value, end)
		}
		for _, i := range k.needs {
			if n := g.tasks[i]; at(n, false) > begin {
				t.Errorf("task %s began before %s had ended", k.name, n.name)
			}
		}
	}
	if t.Failed() {
		t.Logf("marks:\n%s", b)
	}
}

func TestDemoRunsWhatNobodyWrote(t *testing.T) {
	real(t)
	for _, seed := range []uint64{1, 4, 12} {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			g := generate(t, seed)
			dir := g.write(t)
			out, exit := testkit.Run(t, "reconciler", "demo", "--from", dir)
			if exit != 0 {
				made, _ := os.ReadFile(filepath.Join(dir, "compositions", g.composition, "made.cue"))
				t.Fatalf("exit %d\n%s\n%s", exit, out, made)
			}
			if want := "maestro/run/" + g.composition; !strings.Contains(out, want) {
				t.Errorf("no status %s in\n%s", want, out)
			}
			g.check(t)
		})
	}
}
