package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// What people write who come from other systems, and what is written here.

// eventWords are names of what started a run, and the parts of event that they are.
var eventWords = map[string]string{
	"branch": "branch", "ref_name": "branch", "head_ref": "branch", "branch_name": "branch", "git_branch": "branch",
	"commit": "commit", "sha": "commit", "revision": "commit", "git_commit": "commit",
	"tag": "tag", "tag_name": "tag", "ref": "ref", "base_ref": "target", "author": "author", "actor": "author",
	"subject": "subject", "event_name": "kind",
}

// functions of conditions and templates elsewhere.
var functions = map[string]string{
	"startsWith": `write strings.HasPrefix(event.branch, "release/"), and import "strings" below the package line`,
	"endsWith":   `write strings.HasSuffix(event.branch, "/dev"), and import "strings" below the package line`,
	"contains":   `write strings.Contains(event.subject, "docs"), and import "strings" below the package line`,
	"matches":    `write event.branch =~ "^release/", an expression of RE2`,
	"format":     `a value is put into a string with \(…): "v\(params.version)"`,
	"join":       `write strings.Join(params.list, ","), and import "strings" below the package line`,
	"failure":    `write run: "on-failure" instead of when`,
	"always":     `write run: "always" instead of when`,
	"success":    "leave it out: a task runs when those before it have succeeded",
	"cancelled":  `write run: "always" instead of when: it runs when the run is cancelled, too`,
}

// foreignName says what a name is here that nothing declares, "" when it is not known
// from elsewhere.
func (x *explainer) foreignName(name string) string {
	if help, ok := functions[name]; ok {
		return help
	}
	switch name {
	case "item", "matrix":
		return `the element of the list is each.item: write \(each.item) in a string, and beside it each: items: […]`
	case "github", "gitlab", "ci", "workflow", "pipeline":
		return "what started the run is event: event.branch, event.commit, event.tag, event.author"
	case "inputs", "parameters", "vars", "variables":
		return "what is given to a run is params.NAME, declared as params: NAME: string"
	case "steps", "jobs", "needs", "outputs":
		return "an output of a task is tasks.NAME.outputs.NAME"
	case "env", "environment":
		return `what a script finds in its environment is fields: env: NAME: "…", and "$NAME" in the script`
	}
	if part, ok := eventWords[name]; ok {
		return "write event." + part
	}
	idx := newIndex(x.files)
	for _, c := range idx.children("compositions") {
		if slices.Contains(idx.children("compositions", c, "tasks"), name) {
			return "a task is referred to as tasks." + quoteLabel(name) + ", and what it reports as tasks." + quoteLabel(name) + ".outputs.NAME"
		}
	}
	return ""
}

// inOurWords says what to write instead of a reference in the words of another system.
func inOurWords(ref string) string {
	parts := strings.Split(ref, ".")
	root, last := parts[0], parts[len(parts)-1]
	variable := strings.Trim(notInNames.ReplaceAllString(strings.ToUpper(last), "_"), "_0123456789")
	handOver := func(value string) string {
		return plain(fmt.Sprintf(`write \(%s); in a script write "$%s", and beside it env: %s: %s`, value, variable, variable, value))
	}
	switch {
	case root == "secrets":
		return plain(fmt.Sprintf(`a secret is handed over by its name: env: %s: secret: %q, and "$%s" in the script`, variable, asName(last), variable))
	case root == "params" || root == "event":
		return handOver(ref)
	case runtimeRoots[root]:
		return plain(`write \(` + ref + `)`)
	case root == "matrix":
		return `write \(each.item), and beside it each: items: […]`
	case root == "github" || root == "gitlab":
		if part, ok := eventWords[last]; ok {
			return handOver("event." + part)
		}
		return "what started the run is event: event.branch, event.commit, event.tag, event.author"
	case root == "env":
		return plain(fmt.Sprintf(`write "$%s", which is the script's own variable, given as env: %s: "…"`, last, last))
	case slices.Contains([]string{"steps", "needs", "jobs"}, root) && len(parts) > 3:
		return plain(`write \(tasks.` + quoteLabel(parts[1]) + `.outputs.` + last + `)`)
	case slices.Contains([]string{"inputs", "parameters", "vars", "workflow"}, root):
		return handOver("params." + last)
	}
	return `a value is put into a string with \(tasks.NAME.outputs.NAME), \(params.NAME) or \(event.NAME)`
}

// variables that other systems set for each script, and what they are here.
var variables = map[string]string{
	"CI_COMMIT_SHA": "event.commit", "GITHUB_SHA": "event.commit", "GIT_COMMIT": "event.commit",
	"CI_COMMIT_BRANCH": "event.branch", "CI_COMMIT_REF_NAME": "event.branch", "GITHUB_REF_NAME": "event.branch",
	"GITHUB_HEAD_REF": "event.branch", "BRANCH_NAME": "event.branch", "GIT_BRANCH": "event.branch",
	"CI_COMMIT_TAG": "event.tag", "TAG_NAME": "event.tag", "GITHUB_REF": "event.ref",
	"CI_COMMIT_AUTHOR": "event.author", "GITHUB_ACTOR": "event.author", "GITLAB_USER_LOGIN": "event.author",
}

// elsewhere are variables that are no part of the event.
var elsewhere = map[string]string{
	"GITHUB_OUTPUT":    `an output is reported with "$MAESTRO_AGENTD" emit output NAME VALUE`,
	"GITHUB_WORKSPACE": `a script begins in the checkout of an earlier task, or in the run's workspace, "$MAESTRO_WORKSPACE"`,
	"CI_PROJECT_DIR":   `a script begins in the checkout of an earlier task, or in the run's workspace, "$MAESTRO_WORKSPACE"`,
}

var variable = regexp.MustCompile(`\$\{?((?:CI|GITHUB|GITLAB|GIT|BRANCH|TAG)_[A-Z_]+)\b`)

// lintVariables warns of variables in a script that other systems set.
func (w *work) lintVariables(task string, script ast.Expr) {
	given := w.all.children(w.path("tasks", task, "fields", "env")...)
	ast.Walk(script, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return true
		}
		for _, m := range variable.FindAllStringSubmatchIndex(lit.Value, -1) {
			name := lit.Value[m[2]:m[3]]
			value, known := variables[name]
			if slices.Contains(given, name) || strings.Contains(lit.Value, name+"=") || !known && elsewhere[name] == "" {
				continue
			}
			d := warn(codeTemplate, within(lit, m[0]), "$%s is set by another system; here it is empty", name)
			d.Help = plain(fmt.Sprintf("hand it over beside the script: env: %s: %s", name, value))
			if help := elsewhere[name]; help != "" {
				d.Help = help
			}
			w.complain(d)
			given = append(given, name)
		}
		return true
	}, nil)
}

// within is a place in the text of a literal.
func within(lit *ast.BasicLit, at int) pipeline.Position {
	pos := position(lit.Pos())
	before := lit.Value[:at]
	if n := strings.Count(before, "\n"); n > 0 {
		pos.Line += n
		pos.Column = at - strings.LastIndexByte(before, '\n')
	} else {
		pos.Column += at
	}
	return pos
}

// lintConstant warns of a param that can only ever have one value: what was meant is a
// default, or a type.
func (w *work) lintConstant(name string) {
	places := w.all.at(w.path("params", name)...)
	if len(places) != 1 {
		return
	}
	kind := ""
	switch e := places[0].value.(type) {
	case *ast.BasicLit:
		kind = map[token.Token]string{token.STRING: "string", token.INT: "int", token.FLOAT: "number", token.TRUE: "bool", token.FALSE: "bool"}[e.Kind]
	case *ast.StructLit:
		w.lintDescribed(name, e)
		return
	}
	if kind == "" {
		return
	}
	text := exprText(places[0].value)
	d := warn(codeTemplate, position(places[0].value.Pos()), "param %q of composition %q can only ever be %s", name, w.name, text)
	d.Help = plain(fmt.Sprintf("a default is written %s: *%s | %s", quoteLabel(name), text, kind))
	w.complain(d)
}

// lintDescribed warns of a param whose type is described in a struct, as elsewhere.
func (w *work) lintDescribed(name string, e *ast.StructLit) {
	path := w.path("params", name)
	typed, fallback := w.all.at(append(slices.Clone(path), "type")...), w.all.at(append(slices.Clone(path), "default")...)
	if len(typed) != 1 {
		return
	}
	lit, ok := typed[0].value.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return
	}
	kind := map[string]string{"string": "string", "boolean": "bool", "bool": "bool", "number": "number", "integer": "int", "int": "int", "choice": `"a" | "b"`}[unquote(lit.Value)]
	if kind == "" {
		return
	}
	d := warn(codeTemplate, position(e.Pos()), "param %q of composition %q is a struct with a field called type", name, w.name)
	d.Help = "a param is its type: " + quoteLabel(name) + ": " + kind
	if len(fallback) == 1 {
		d.Help = plain(fmt.Sprintf("a param is its type, with a default before it: %s: *%s | %s", quoteLabel(name), exprText(fallback[0].value), kind))
	}
	w.complain(d)
}

// readsSecrets reports references to secrets as if they were values. It comes before
// the checks that would call them incomplete.
func (w *work) readsSecrets() bool {
	found := false
	for _, p := range w.all.at(w.path()...) {
		if p.value == nil {
			continue
		}
		ast.Walk(p.value, func(n ast.Node) bool {
			e, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			switch e.(type) {
			case *ast.SelectorExpr, *ast.IndexExpr:
			default:
				return true
			}
			c := chainOf(e, 0)
			if len(c) < 2 || c[0].name != "secrets" || w.all.scopes[c[0].scope] != "" {
				return true
			}
			found = true
			name := c[1].name
			variable := strings.Trim(notInNames.ReplaceAllString(strings.ToUpper(name), "_"), "_0123456789")
			d := diag(codeSecret, c[0].pos, "composition %q reads secrets.%s, but the value of a secret is not known here", w.name, name)
			d.Note = "it reaches the program of a task that names the secret, and nothing else"
			d.Help = plain(fmt.Sprintf(`name it in the field that takes it: env: %s: secret: %q, and "$%s" in the script`, variable, asName(name), variable))
			w.complain(d)
			return false
		}, nil)
	}
	return found
}
