package ansi_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/reconciler/internal/web/ansi"
	"github.com/maestro-cd/maestro/ui"
)

// TestStyleSheetHasThePalette holds the sheet that browsers get to the palette
// that colours are mapped to.
func TestStyleSheetHasThePalette(t *testing.T) {
	t.Parallel()
	u, err := ui.Load()
	if err != nil {
		t.Fatal(err)
	}
	a, ok := u.Asset(u.URL("ansi.css"))
	if !ok {
		t.Fatal("no ansi.css")
	}
	for i := 16; i < 256; i++ {
		r, g, b := ansi.Palette(i)
		if want := fmt.Sprintf(".f%d{color:#%02x%02x%02x}.b%d{background:#%02x%02x%02x}\n", i, r, g, b, i, r, g, b); !strings.Contains(string(a.Body), want) {
			t.Errorf("the sheet lacks %s", want)
		}
	}
}
