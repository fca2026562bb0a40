package fleet_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
)

func logBytes(t *testing.T, c *wsconn.Conn, off int64, n int) {
	t.Helper()
	if err := c.SendLog(t.Context(), wire.LogFrame{Attempt: attempt, Token: token, Offset: off, Data: make([]byte, n)}); err != nil {
		t.Fatal(err)
	}
}

func TestLogBytesArePassedOnAndAcknowledged(t *testing.T) {
	t.Parallel()
	w := newWorld()
	k := w.enrolled(t)
	c, _ := connect(t, w.serve(t), k, nil)
	w.events.next(t, "connected", k.id)
	w.sendTo(t, k.id, &wire.Go{Attempt: attempt, Token: token})
	receive[*wire.Go](t, c)
	logBytes(t, c, 0, 100)
	<-w.logs.taken
	w.fleet.LogDurable(attempt, 100, false)
	if ack := receive[*wire.LogAck](t, c); ack.Attempt != attempt || ack.Token != token || ack.Length != 100 || ack.Resend {
		t.Errorf("acknowledged with %+v", ack)
	}
	w.fleet.LogDurable(attempt, 90, true)
	if ack := receive[*wire.LogAck](t, c); ack.Length != 100 || !ack.Resend {
		t.Errorf("a gap was told with %+v; what was acknowledged stays so", ack)
	}
	w.fleet.LogDurable("01JDYYYYYYYYYYYYYYYYYYYYYY", 5, true) // nobody streams it
}

func TestResumedLogGoesOnFromItsAcknowledgement(t *testing.T) {
	t.Parallel()
	w := newWorld()
	k := w.enrolled(t)
	url := w.serve(t)
	c, _ := connect(t, url, k, func(h *wire.Hello) {
		h.Attempts = []wire.Held{{Attempt: attempt, Token: token, Phase: "running"}}
	})
	w.events.next(t, "connected", k.id)
	logBytes(t, c, 500, 10) // before the loop has spoken: dropped, but not fenced
	send(t, c, &wire.Beat{N: 1})
	receive[*wire.BeatAck](t, c)
	w.sendTo(t, k.id, &wire.LogAck{Attempt: attempt, Token: token, Length: 400})
	receive[*wire.LogAck](t, c)
	logBytes(t, c, 400, 10)
	if off := <-w.logs.taken; off != 400 {
		t.Errorf("bytes at %d were passed on, want those at 400", off)
	}
}

func TestFinishedAttemptMayNotStream(t *testing.T) {
	t.Parallel()
	w := newWorld()
	k := w.enrolled(t)
	c, _ := connect(t, w.serve(t), k, nil)
	w.events.next(t, "connected", k.id)
	w.sendTo(t, k.id, &wire.Go{Attempt: attempt, Token: token})
	receive[*wire.Go](t, c)
	w.sendTo(t, k.id, &wire.Ack{Attempt: attempt, Token: token})
	receive[*wire.Ack](t, c)
	logBytes(t, c, 0, 1)
	receive[*wire.Fenced](t, c)
}

func TestOldTokenMayNotStream(t *testing.T) {
	t.Parallel()
	w := newWorld()
	k := w.enrolled(t)
	c, _ := connect(t, w.serve(t), k, nil)
	w.events.next(t, "connected", k.id)
	w.sendTo(t, k.id, &wire.Go{Attempt: attempt, Token: pipeline.Token{Incarnation: 1, Epoch: 2}})
	receive[*wire.Go](t, c)
	logBytes(t, c, 0, 1)
	if m := receive[*wire.Fenced](t, c); m.Token != token {
		t.Errorf("fenced %+v", m)
	}
}

func TestMoreThanTheLogWindowEndsTheSession(t *testing.T) {
	t.Parallel()
	w := newWorld()
	k := w.enrolled(t)
	c, _ := connect(t, w.serve(t), k, nil)
	w.events.next(t, "connected", k.id)
	w.sendTo(t, k.id, &wire.Go{Attempt: attempt, Token: token})
	receive[*wire.Go](t, c)
	const frames = wire.LogWindow / wire.MaxLogFrame
	off := int64(0)
	for range frames {
		logBytes(t, c, off, wire.MaxLogFrame)
		off += wire.MaxLogFrame
	}
	for range frames {
		<-w.logs.taken // a full window is fine
	}
	w.fleet.LogDurable(attempt, off, false)
	receive[*wire.LogAck](t, c)
	for range frames {
		logBytes(t, c, off, wire.MaxLogFrame)
		off += wire.MaxLogFrame
	}
	for range frames {
		<-w.logs.taken // and so is the next
	}
	const slack = 1 << 20 / wire.MaxLogFrame
	for range slack + 1 {
		logBytes(t, c, 0, wire.MaxLogFrame) // repeating what was sent is no way around it
	}
	if code := ends(t, c); code != wsconn.CodePolicy {
		t.Errorf("closed with %d, want %d", code, wsconn.CodePolicy)
	}
	if n := len(w.logs.taken); n != slack {
		t.Errorf("%d frames were taken beyond the window, want %d", n, slack)
	}
}

func TestRefusedLogBytesAreAskedForAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, d, _, end := pipeWorld(t)
		defer end()
		k := w.enrolled(t)
		c := greet(t, d, "http://pipe", k, nil)
		defer closed(c)
		receive[*wire.Welcome](t, c)
		w.sendTo(t, k.id, &wire.Go{Attempt: attempt, Token: token})
		receive[*wire.Go](t, c)
		w.fleet.LogDurable(attempt, 50, false)
		receive[*wire.LogAck](t, c)
		w.logs.fail(true)
		for i := range 20 {
			logBytes(t, c, 50+int64(i)*10, 10)
		}
		start := time.Now()
		ack := receive[*wire.LogAck](t, c)
		if !ack.Resend || ack.Length != 50 || time.Since(start) > 6*time.Second {
			t.Errorf("asked with %+v after %v", ack, time.Since(start))
		}
		w.logs.fail(false)
		logBytes(t, c, 50, 200)
		synctest.Wait()
		if n := w.logs.length(attempt); n != 250 {
			t.Errorf("the log has %d bytes, want 250", n)
		}
	})
}

func TestGapsDoNotMakeTheAgentResendWithoutEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, d, _, end := pipeWorld(t)
		defer end()
		k := w.enrolled(t)
		c := greet(t, d, "http://pipe", k, nil)
		defer closed(c)
		receive[*wire.Welcome](t, c)
		w.sendTo(t, k.id, &wire.Go{Attempt: attempt, Token: token})
		receive[*wire.Go](t, c)
		stop := time.Now().Add(20 * time.Second)
		asked := 0
		for time.Now().Before(stop) {
			w.fleet.LogDurable(attempt, 0, true) // the store has no space, and says so 5 times a second
			if receive[*wire.LogAck](t, c).Resend {
				asked++
			}
			time.Sleep(200 * time.Millisecond)
		}
		if asked < 3 || asked > 25 {
			t.Errorf("asked %d times in 20 s, want about once a second at most", asked)
		}
	})
}
