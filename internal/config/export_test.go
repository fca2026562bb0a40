package config

import (
	"fmt"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/cuecontext"
	"cuelang.org/go/cue/parser"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Constraint is a CUE constraint and what was compiled of it, for comparison.
type Constraint struct {
	ctx     *cue.Context
	value   cue.Value
	text    string
	clauses []pipeline.Clause
	Type    pipeline.Type
}

// CompileFacts compiles a requirement's facts.
func CompileFacts(text string) (*Constraint, error) {
	c, err := constraint(text)
	if err != nil {
		return nil, err
	}
	res := &unitResult{}
	w := &work{checker: &checker{res: res, all: newIndex(nil)}}
	collect := clauses{work: w, base: []string{"facts"}, subject: "agent"}
	collect.collect(c.value, nil, 0)
	if len(res.Diagnostics) > 0 {
		return nil, fmt.Errorf("%s", res.Diagnostics[0].Message)
	}
	c.clauses = collect.out
	return c, nil
}

// CompileType compiles any constraint.
func CompileType(text string) (*Constraint, error) {
	c, err := constraint(text)
	if err != nil {
		return nil, err
	}
	c.Type, err = compileType(c.value)
	return c, err
}

func constraint(text string) (*Constraint, error) {
	ctx := cuecontext.New()
	v := ctx.CompileString("import (\"strings\", \"list\", \"struct\")\n_s: strings.ToUpper(\"\")\n_l: list.Max([1])\n_m: {a: 1} & struct.MinFields(1)\n#Path: !~\"\\\\x00\"\nx: " + text)
	if err := v.Err(); err != nil {
		return nil, err
	}
	x := v.LookupPath(cue.ParsePath("x"))
	return &Constraint{ctx: ctx, value: x, text: text}, x.Err()
}

// MatchesByCUE asks CUE whether a JSON value is an instance of the constraint.
// Subsume of v0.17 takes 4 for an instance of !="x", which 4 & !="x" is not, and
// {a: 1} for none of {[string]: int}; where such forms occur, the value must survive unification unchanged.
func (c *Constraint) MatchesByCUE(json string) bool {
	v := c.ctx.CompileString(json)
	if v.Err() != nil {
		return false
	}
	if !strings.Contains(c.text, "!=") && !strings.Contains(c.text, "[string]") {
		return c.value.Subsume(v) == nil
	}
	u := c.value.Unify(v)
	return u.Validate(cue.Concrete(true)) == nil && u.Equals(v)
}

// MatchesByClauses asks the compiled requirement.
func (c *Constraint) MatchesByClauses(json string) bool {
	facts, err := pipeline.DecodeJSON([]byte(json))
	if err != nil {
		return false
	}
	for _, clause := range c.clauses {
		v, ok := lookup(facts, clause.Path)
		if !ok || !clause.Type.Fits(v) {
			return false
		}
	}
	return true
}

// Covers and Distance are tested as they are.
var (
	Covers   = covers
	Distance = distance
)

// SyntaxOf is what is said of a file that cannot be read as CUE.
func SyntaxOf(name, text string) []pipeline.Diagnostic {
	if _, err := parser.ParseFile(name, text, parser.ParseComments); err != nil {
		return syntaxDiagnostics(name, []byte(text), err)
	}
	return nil
}

// CheckInProcess evaluates one unit without a child, and without its limits.
func CheckInProcess(module string, texts map[string][]byte, dir string) ([]pipeline.Diagnostic, []pipeline.Composition) {
	b := newBatch(&request{Module: module, Files: texts, MaxTasks: 100})
	res := checkSafely(b, unitRef{kindOps, dir})
	return res.Diagnostics, res.Compositions
}
