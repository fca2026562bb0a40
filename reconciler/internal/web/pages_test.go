package web_test

import (
	"net/http"
	"testing"
)

// pages are the addresses of the sample that a person opens.
var pages = []string{
	"/", "/c/acceptance", "/c/hello", "/c/acceptance/128", "/c/acceptance/126", "/c/hello/57",
	"/c/acceptance/128/t/checkout", "/c/acceptance/128/t/lint", "/c/acceptance/128/t/lint?attempt=1", "/c/acceptance/128/t/unit",
	"/c/acceptance/128/t/start-vm", "/c/acceptance/128/t/deploy-war", "/c/acceptance/128/t/acceptance", "/c/acceptance/128/t/load",
	"/c/acceptance/128/t/confirm-deploy", "/c/acceptance/128/t/windows-smoke", "/c/acceptance/128/t/migrate", "/c/acceptance/128/t/docs",
	"/c/acceptance/128/t/publish-docs", "/c/acceptance/128/t/notify", "/c/acceptance/128/t/destroy-vm",
	"/c/acceptance/128/t/checkout?q=case&line=3",
	"/queue", "/agents", "/agents/a-3", "/agents/a-8", "/commits", "/commits/" + string(shaLive), "/commits/" + string(shaBad), "/problems", "/plugins",
}

func TestEveryPageIsRenderedInEveryState(t *testing.T) {
	t.Parallel()
	h := handler(t, sample())
	for _, p := range pages {
		res, body := get(t, h, p)
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: status %d\n%s", p, res.StatusCode, body)
		}
	}
}
