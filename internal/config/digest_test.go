package config_test

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A digest is what a run is planned with: it covers all that is said of the
// composition, and neither its layout nor its place.
func TestADigestCoversAllThatIsSaidAndNoLayout(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/language.txtar")
	if err != nil {
		t.Fatal(err)
	}
	input := &txtar.Archive{}
	for _, f := range txtar.Parse(raw).Files {
		if !strings.HasPrefix(f.Name, "want/") {
			input.Files = append(input.Files, f)
		}
	}
	e := newEvaluator(t, nil)
	const name = "compositions/x/x.cue"
	original := string(files(t, string(txtar.Format(input)))[name].Data)
	digest := func(t *testing.T, file, text string) pipeline.Digest {
		t.Helper()
		tree := files(t, base, string(txtar.Format(input)))
		delete(tree, name)
		tree[file] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
		cfg := evaluate(t, e, tree)
		c := cfg.Composition("release")
		if c == nil {
			t.Fatal(rendered(t, cfg, tree))
		}
		return c.Digest
	}
	want := digest(t, name, original)
	formatted, err := config.Format(name, []byte(original))
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string][2]string{
		"comments and empty lines": {name, "// A comment.\n\n\n" + strings.ReplaceAll(original, "tasks: {", "// Another.\n\n\ttasks: {\n\n")},
		"formatting":               {name, string(formatted)},
		"another file":             {"compositions/x/z.cue", original},
	} {
		if got := digest(t, c[0], c[1]); got != want {
			t.Errorf("%s: the digest changes", what)
		}
	}
	for _, c := range [][2]string{
		{`tasks.deploy.outputs.url`, `"x-\(tasks.deploy.outputs.url)"`},
		{`"prod-\(params.version)"`, `"PROD-\(params.version)"`},
		{`policy: "queue"`, `policy: "latest-only"`},
		{`running: 1`, `running: 2`},
		{`with: {what: "release"`, `with: {what: "Release"`},
		{`with: {version: params.version}`, `with: {version: "v-\(params.version)"}`},
		{`"deploy \(params.version)?"`, `"Deploy \(params.version)?"`},
		{`count: 1`, `count: 2`},
		{`within: "30m"`, `within: "31m"`},
		{`with: {to: tasks.build.outputs.war}`, `with: {to: "\(tasks.build.outputs.war)"}`},
		{`when: event.branch == "main"`, `when: event.branch == "Main"`},
		{`max: 3`, `max: 4`},
		{`"echo \(each.item)"`, `"print \(each.item)"`},
		{`params: version: event.commit`, `params: version: event.base`},
		{`branches: ["main"], paths`, `branches: ["dev"], paths`},
		{`zone: "Europe/Paris"`, `zone: "Europe/Rome"`},
		{`schedule: "0 2 * * *"`, `schedule: "0 3 * * *"`},
		{`id: "deploy"`, `id: "deploy-it"`},
		{`payload: {version: string}`, `payload: {version: string, more?: int}`},
		{`result: "success"}, params`, `result: "any"}, params`},
	} {
		if !strings.Contains(original, c[0]) {
			t.Errorf("the example has no %s", c[0])
			continue
		}
		if got := digest(t, name, strings.Replace(original, c[0], c[1], 1)); got == want {
			t.Errorf("%s instead of %s: the digest stays", c[1], c[0])
		}
	}
}
