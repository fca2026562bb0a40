package store

import "sync"

// hub wakes those who wait for news about a key. The zero hub is ready for use.
type hub[K comparable] struct {
	mu      sync.Mutex
	waiting map[K]map[chan struct{}]struct{} // guarded by mu
}

// watch returns a channel that receives after news about k. Signals that nobody
// has taken yet are one signal. stop may be called more than once.
func (h *hub[K]) watch(k K) (signal <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting == nil {
		h.waiting = map[K]map[chan struct{}]struct{}{}
	}
	if h.waiting[k] == nil {
		h.waiting[k] = map[chan struct{}]struct{}{}
	}
	h.waiting[k][ch] = struct{}{}
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.waiting[k], ch)
		if len(h.waiting[k]) == 0 {
			delete(h.waiting, k)
		}
	}
}

// notify never blocks.
func (h *hub[K]) notify(k K) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.waiting[k] {
		select {
		case ch <- struct{}{}:
		default: // one signal is waiting already
		}
	}
}
