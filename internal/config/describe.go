package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// inWords says what a declaration asks for, without CUE's own notation wherever a
// person would say it otherwise.
func inWords(decl cue.Value) string {
	s := constraintText(decl)
	_, name, _ := strings.Cut(s, "#")
	switch name {
	case "Duration":
		return `a duration such as "15m"`
	case "Name":
		return "a name: a lower-case letter, then a-z, 0-9 and -"
	}
	if t, err := compileType(decl); err == nil {
		return typeInWords(t)
	}
	switch decl.IncompleteKind() {
	case cue.StructKind:
		return "a struct"
	case cue.ListKind:
		if strings.Contains(s, "#") {
			return "a list"
		}
	}
	return s
}

func typeInWords(t pipeline.Type) string {
	switch {
	case len(t.Enum) == 1:
		return string(t.Enum[0])
	case len(t.Enum) > 0:
		return alternatives(t.Enum, func(e json.RawMessage) string { return string(e) })
	}
	switch t.Kind {
	case pipeline.KindString:
		return "a string" + stringInWords(t)
	case pipeline.KindInt:
		return "a whole number" + bounds(t)
	case pipeline.KindNumber:
		return "a number" + bounds(t)
	case pipeline.KindBool:
		return "true or false"
	case pipeline.KindList:
		return listInWords(t)
	case pipeline.KindPath:
		return "a path"
	case pipeline.KindSecret:
		return `a secret, {secret: "NAME"}`
	case pipeline.KindOneOf:
		return alternatives(t.OneOf, typeInWords)
	case pipeline.KindAny:
		return "any value"
	case pipeline.KindStruct:
		return "a struct"
	}
	return string(t.Kind)
}

func alternatives[S ~[]E, E any](list S, say func(E) string) string {
	parts := make([]string, len(list))
	for i, e := range list {
		parts[i] = say(e)
	}
	if len(parts) < 2 {
		return strings.Join(parts, "")
	}
	return strings.Join(parts[:len(parts)-1], ", ") + " or " + parts[len(parts)-1]
}

func stringInWords(t pipeline.Type) string {
	var more []string
	for _, p := range t.Patterns {
		more = append(more, " that matches "+plain(p))
	}
	for _, p := range t.NotPatterns {
		more = append(more, " that does not match "+plain(p))
	}
	for _, v := range t.Not {
		if string(v) == `""` {
			more = append(more, " that is not empty")
			continue
		}
		more = append(more, " other than "+string(v))
	}
	return strings.Join(more, " and")
}

func bounds(t pipeline.Type) string {
	switch {
	case t.Min != "" && t.Max != "":
		return " from " + t.Min + " to " + t.Max
	case t.Min != "":
		return " of at least " + t.Min
	case t.Max != "":
		return " of at most " + t.Max
	case t.Over != "" && t.Under != "":
		return " between " + t.Over + " and " + t.Under
	case t.Over != "":
		return " above " + t.Over
	case t.Under != "":
		return " below " + t.Under
	}
	return ""
}

func listInWords(t pipeline.Type) string {
	strs := t.Elem != nil && t.Elem.Kind == pipeline.KindString && len(t.Elem.Enum) == 0
	switch {
	case strs && t.MinItems == 1:
		return "a list of at least one string"
	case strs:
		return "a list of strings"
	case t.Elem != nil && t.Elem.Kind != pipeline.KindAny:
		return "a list, each " + typeInWords(*t.Elem)
	}
	return "a list"
}

// sample is a value to begin with, in the place of one that is missing.
func sample(decl cue.Value) string {
	if strings.Contains(constraintText(decl), "#Duration") {
		return `"15m"`
	}
	t, err := compileType(decl)
	if err != nil {
		return "…"
	}
	if t.Kind == pipeline.KindOneOf && len(t.OneOf) > 0 {
		t = t.OneOf[0]
	}
	switch {
	case len(t.Enum) > 0:
		return string(t.Enum[0])
	case t.Kind == pipeline.KindString:
		return `"…"`
	case t.Kind == pipeline.KindInt, t.Kind == pipeline.KindNumber:
		return cmp.Or(t.Min, t.Max, "1")
	case t.Kind == pipeline.KindBool:
		return "true"
	case t.Kind == pipeline.KindList:
		return "[…]"
	case t.Kind == pipeline.KindStruct:
		return "{…}"
	case t.Kind == pipeline.KindPath:
		return `"."`
	case t.Kind == pipeline.KindSecret:
		return `secret: "NAME"`
	}
	return "…"
}

var (
	unitWord = regexp.MustCompile(`^"?([0-9]+) *(d|days?|h|hrs?|hours?|m|mins?|minutes?|s|secs?|seconds?)"?$`)
	digits   = regexp.MustCompile(`^"?([0-9]+)"?$`)
)

// durationFor says how a duration is written, with the author's own number if
// there is one.
func durationFor(text string) string {
	if m := unitWord.FindStringSubmatch(text); m != nil {
		unit, n := m[2][:1], m[1]
		if unit == "d" && len(n) < 5 {
			days := 0
			fmt.Sscan(n, &days)
			return fmt.Sprintf(`write "%dh"`, days*24)
		}
		return fmt.Sprintf("write %q", n+unit)
	}
	if m := digits.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("write the unit: %q for seconds, %q for minutes", m[1]+"s", m[1]+"m")
	}
	return `write "30s", "30m" or "1h30m"`
}

// example says how a part of the schema is written, where the general rules would
// not be enough. wrote is what stands there.
func example(p []string, wrote ast.Expr) string {
	text := exprText(wrote)
	lit, _ := wrote.(*ast.BasicLit)
	if len(p) < 3 || p[0] != "compositions" {
		return ""
	}
	path := p[2:]
	switch last := path[len(path)-1]; {
	case len(path) == 1 && last == "triggers", len(path) == 3 && path[0] == "triggers" && last == "push", len(path) == 2 && path[0] == "triggers":
		return `write triggers: [{push: branches: ["main"]}]`
	case len(path) == 3 && path[0] == "triggers" && last == "cron" && lit != nil:
		return "write cron: schedule: " + text
	case len(path) == 1 && last == "tasks":
		return `write tasks: {NAME: shell.#Run & {fields: script: "…"}}, one NAME for each task`
	case len(path) == 2 && path[0] == "tasks":
		return "write " + quoteLabel(last) + `: shell.#Run & {fields: script: "…"}`
	case len(path) == 1 && last == "params":
		return `write params: NAME: string`
	case last == "agent" && lit != nil && (text == `"any"` || text == `"none"`):
		return "leave agent out: then any agent may run it"
	case last == "agent" && lit != nil:
		return "write agent: pool: " + text
	case last == "retries" && lit != nil:
		return "write retries: {max: " + unquote(text) + "}"
	case last == "run" && len(path) == 3 && lit != nil && strings.ContainsAny(unquote(text), " ./"):
		return "run says when a task runs; a command goes into a field: fields: script: " + text
	case last == "run" && len(path) == 3 && lit != nil && nearest(unquote(text), []string{"on-success", "on-failure", "always"}) == "":
		return "run says when a task runs; a command goes into a field: fields: script: " + text
	case last == "when" && len(path) == 3 && lit != nil:
		return `a condition is written without quotes, with strings in double ones: when: event.branch == "main"`
	case last == "concurrency" && len(path) == 1 && lit != nil:
		return "write concurrency: group: " + text
	case last == "tag" && len(path) == 3 && lit != nil:
		return "write tag: tags: [" + text + "]"
	case last == "pullRequest" && len(path) == 3 && path[0] == "triggers" && lit != nil && strings.HasPrefix(text, `"`):
		return "write pullRequest: branches: [" + text + "]"
	case (last == "pullRequest" || last == "manual") && len(path) == 3 && path[0] == "triggers":
		return "write " + last + ": {}"
	case last == "webhook" && len(path) == 3 && lit != nil:
		return "write webhook: {id: " + text + `, secret: secret: "NAME"}`
	case last == "fields" && len(path) == 3:
		return "write fields: {NAME: VALUE}"
	case last == "uses" && len(path) == 3:
		return "a task is made of a plugin's definition, such as checkout: git.#Checkout & {…}, and says no uses"
	}
	return ""
}
