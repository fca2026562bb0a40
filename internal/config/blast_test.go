package config_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

const callSites = `
-- compositions/direct/x.cue --
package ops
import ("acme.example/ops/plugins/fog", "github.com/maestro-cd/maestro/plugins/shell")
compositions: direct: {
	triggers: []
	tasks: {
		up: fog.#Provision & {fields: {provider: "aws", image_id: "ami"}}
		ping: shell.#Run & {fields: script: "ping \(tasks.up.outputs.public_ip)"}
	}
}
-- compositions/inherits/x.cue --
package ops
import "acme.example/ops/plugins/fog"
compositions: inherits: {
	triggers: []
	tasks: {
		up: fog.#Provision & {fields: {provider: "aws", image_id: "ami", size: "large"}}
		down: fog.#Deprovision & {needs: ["up"]}
	}
}
-- compositions/many/x.cue --
package ops
import "acme.example/ops/plugins/fog"
compositions: many: {
	triggers: []
	params: n: *2 | int & >=1 & <=9
	tasks: up: fog.#Provision & {fields: {provider: "google", image_id: "ami", count: params.n}}
	outputs: ip: tasks.up.outputs.public_ip
}
-- compositions/caller/x.cue --
package ops
import ("github.com/maestro-cd/maestro", "github.com/maestro-cd/maestro/plugins/shell")
compositions: caller: {
	triggers: []
	tasks: {
		many: maestro.#Run & {fields: composition: "many", outputs: ip: string}
		ping: shell.#Run & {fields: script: "ping \(tasks.many.outputs.ip)"}
	}
}
-- compositions/other/x.cue --
package ops
import "github.com/maestro-cd/maestro/plugins/shell"
compositions: other: {
	triggers: []
	tasks: a: shell.#Run & {fields: script: "x"}
}
`

// A manifest is an interface: changing it breaks all call sites that the change
// concerns, and no others.
func TestAChangedManifestBreaksItsCallSitesAndNoOthers(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	for name, c := range map[string]struct {
		old, new string
		want     []string // file:line code
		usable   []pipeline.CompositionName
	}{
		"nothing": {"", "", nil, []pipeline.CompositionName{"caller", "direct", "inherits", "many", "other"}},
		"a field is renamed": {
			"image_id!:    string", "image!:       string",
			[]string{"caller:6 RC0106", "direct:6 RC0108", "inherits:6 RC0108", "many:6 RC0108"},
			[]pipeline.CompositionName{"other"},
		},
		"an optional field is removed": {
			`		size:         *"small" | "medium" | "large"` + "\n", "",
			[]string{"inherits:6 RC0108"},
			[]pipeline.CompositionName{"caller", "direct", "many", "other"},
		},
		"a field takes another type": {
			"count:        *1 | int & >=1 & <=100", `count: *"1" | string`,
			[]string{"caller:6 RC0106", "many:6 RC0107"},
			[]pipeline.CompositionName{"direct", "inherits", "other"},
		},
		"a field takes less": {
			"count:        *1 | int & >=1 & <=100", "count: *1 | int & >=1 & <=5",
			[]string{"many:6 RC0210"},
			[]pipeline.CompositionName{"caller", "direct", "inherits", "many", "other"},
		},
		"a new field is required": {
			"provider!:    #Provider", "provider!:    #Provider\n\t\tzone!: string",
			[]string{"caller:6 RC0106", "direct:6 RC0109", "inherits:6 RC0109", "many:6 RC0109"},
			[]pipeline.CompositionName{"other"},
		},
		"an output is renamed": {
			"public_ip:    string      @provide(cloud.public_ip)", "address: string @provide(cloud.public_ip)",
			[]string{"caller:6 RC0106", "direct:7 RC0203", "many:7 RC0203"},
			[]pipeline.CompositionName{"inherits", "other"},
		},
		"an output has another type": {
			"public_ip:    string      @provide(cloud.public_ip)", "public_ip: [...string] @provide(cloud.public_ip)",
			[]string{"caller:6 RC0503", "direct:7 RC0107"},
			[]pipeline.CompositionName{"inherits", "many", "other"},
		},
		"an output is no longer provided": {
			"instance_ids: [...string] @provide(cloud.instance_ids)", "instance_ids: [...string]",
			[]string{"inherits:7 RC0205"},
			[]pipeline.CompositionName{"caller", "direct", "many", "other"},
		},
		"an inherited field takes less": {
			"instance_ids?: [...string] @inherit(cloud.instance_ids)", "instance_ids?: [string, ...string] @inherit(cloud.instance_ids)",
			[]string{"inherits:7 RC0209"},
			[]pipeline.CompositionName{"caller", "direct", "many", "other"},
		},
		"a task is renamed": {
			"#Deprovision: maestro.#Task & {\n\tuses: \"fog/deprovision\"", "#Destroy: maestro.#Task & {\n\tuses: \"fog/destroy\"",
			[]string{"inherits:7 RC0112"},
			[]pipeline.CompositionName{"caller", "direct", "many", "other"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tree := files(t, base, callSites)
			manifest := string(tree["plugins/fog/plugin.cue"].Data)
			if !strings.Contains(manifest, c.old) {
				t.Fatalf("the manifest has no %q", c.old)
			}
			tree["plugins/fog/plugin.cue"] = &fstest.MapFile{Data: []byte(strings.ReplaceAll(manifest, c.old, c.new)), Mode: 0o644}
			if c.old == "" {
				tree["plugins/fog/plugin.cue"].Data = []byte(manifest)
			}
			cfg := evaluate(t, e, tree)
			var got []string
			for _, d := range cfg.Diagnostics {
				dir := strings.TrimSuffix(strings.TrimPrefix(d.Pos.File, "compositions/"), "/x.cue")
				if s := fmt.Sprintf("%s:%d %s", dir, d.Pos.Line, d.Code); !slices.Contains(got, s) {
					got = append(got, s)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s\n%s", diff, rendered(t, cfg, tree))
			}
			var usable []pipeline.CompositionName
			for _, c := range cfg.Compositions {
				usable = append(usable, c.Name)
			}
			if diff := cmp.Diff(c.usable, usable); diff != "" {
				t.Errorf("usable (-want +got):\n%s", diff)
			}
		})
	}
}
