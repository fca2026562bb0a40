package config_test

import (
	"slices"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestEverySpellingThatIsAcceptedMakesAnEdge(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	for name, ref := range map[string]string{
		"plain":         "tasks.info.outputs.version",
		"by its path":   "compositions.x.tasks.info.outputs.version",
		"by its name":   "x.tasks.info.outputs.version",
		"with an index": `tasks["info"].outputs["version"]`,
		"in a function": "len(compositions.x.tasks.info.outputs.ids)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := evaluate(t, e, files(t, base, `
-- compositions/x/x.cue --
package ops

import "github.com/maestro-cd/maestro/plugins/shell"

compositions: x: {
	triggers: [{push: {}}]
	tasks: {
		info: shell.#Run & {
			fields: script: "x"
			outputs: {version: string, ids: [...string]}
		}
		use: shell.#Run & {fields: script: "\(`+ref+`)"}
	}
}
`))
			c := cfg.Composition("x")
			if c == nil {
				t.Fatalf("refused: %v", cfg.Diagnostics)
			}
			use := c.Task("use")
			if !slices.Equal(use.Needs, []pipeline.TaskName{"info"}) || !use.Deferred {
				t.Errorf("needs %v, deferred %v; want [info], true", use.Needs, use.Deferred)
			}
		})
	}
}
