package forge_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
)

func TestPermissionsAreDocumentedAsTheyAreAsked(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/forges.md")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `") && strings.Count(line, "|") == 4 && !strings.Contains(line, "/maestro") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	if want := forge.PowerRows(); !slices.Equal(found, want) {
		t.Errorf("docs/forges.md has\n%s\nwant\n%s", strings.Join(found, "\n"), strings.Join(want, "\n"))
	}
}

func TestKeyThatIsNoneIsSaidSoWithoutShowingIt(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"", "canary", "-----BEGIN RSA PRIVATE KEY-----\nY2FuYXJ5\n-----END RSA PRIVATE KEY-----\n", "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n"} {
		g, err := forge.NewGitHub(forge.GitHubConfig{
			Owner: "octo", Repo: "ops", BaseURL: "http://127.0.0.1:1/", App: &forge.App{ID: 42, Key: func() ([]byte, error) { return []byte(key), nil }},
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = g.Pulls(t.Context())
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "the key of the GitHub App is not") || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "Y2Fu") {
			t.Errorf("%q: %v", key, err)
		}
	}
}
