package session_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/session"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestTokenIsUsedOnce(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.enrolled = map[pipeline.AgentID]bool{}
		s.tokens["join-1"] = ""
		cfg.Token = "join-1"
		for range 3 {
			r := run(cfg)
			s.next(t)
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
		}
		if s.enrolments != 1 {
			t.Errorf("enrolled %d times", s.enrolments)
		}
		b, err := os.ReadFile(filepath.Join(cfg.Dir, "enrolled.json"))
		if err != nil || !strings.Contains(string(b), "record-1") || strings.Contains(string(b), "join-1") {
			t.Errorf("remembered %s, %v", b, err)
		}
	})
}

func TestUsedTokenOfAnEnrolledAgentIsFine(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.tokens["join-1"] = "a-someone-else"
		cfg.Token = "join-1" // and enrolled.json was lost
		r := run(cfg)
		defer r.stop()
		s.next(t)
	})
}

func TestUsedTokenOfAStrangerEndsRun(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.enrolled = map[pipeline.AgentID]bool{}
		s.tokens["join-1"] = "a-someone-else"
		cfg.Token = "join-1"
		r := run(cfg)
		defer r.stop()
		err := <-r.ended
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "was used; make another") || !strings.Contains(err.Error(), "not enrolled") {
			t.Errorf("Run = %v, want what is wrong with the token and with the agent", err)
		}
		if strings.Contains(err.Error()+r.logged.String(), "join-1") {
			t.Error("the token is shown")
		}
	})
}

func TestAgentWithoutTokenIsToldToGetOne(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.enrolled = map[pipeline.AgentID]bool{}
		r := run(cfg)
		defer r.stop()
		if err := <-r.ended; !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "make a join token") {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestEnrolmentWaitsForTheServer(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.enrolled = map[pipeline.AgentID]bool{}
		s.tokens["join-1"] = ""
		s.down = true
		cfg.Token = "join-1"
		r := run(cfg)
		defer r.stop()
		time.Sleep(5 * time.Minute)
		s.set(func() { s.down = false })
		s.next(t)
	})
}

func TestNewRecordAtTheSameAddressTakesTheToken(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		r := run(cfg)
		<-r.runner.links
		_ = r.stop()
		<-s.conns
		s.set(func() {
			s.record, s.enrolled = "record-2", map[pipeline.AgentID]bool{}
			s.tokens["join-2"] = ""
		})
		cfg.Token = "join-2"
		r = run(cfg)
		defer r.stop()
		s.next(t)
		if w := <-r.runner.welcome; w.Server != "record-2" {
			t.Errorf("welcomed by %s", w.Server)
		}
	})
}

func TestDamagedMemoryIsNoObstacle(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"", "{", "null", `{"servers":{"x":null}}`, `{"agent":"a-other","servers":{"record-1":{"incarnation":99}}}`} {
		onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
			if err := os.WriteFile(filepath.Join(cfg.Dir, "enrolled.json"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			r := run(cfg)
			defer r.stop()
			<-r.runner.links
			if strings.Contains(r.logged.String(), "record is older") {
				t.Errorf("%q: another agent's memory was believed", content)
			}
		})
	}
}
