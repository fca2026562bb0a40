package wire

// Link is an agent's side of one established connection. It is given to whoever
// runs the tasks and dies with its connection: after that every call returns an
// error that is fault.Unavailable, and what was not acknowledged is sent again
// over the next link. All methods may be called from any goroutine.
type Link interface {
	// Send queues m. It does not wait for the network: a full queue ends the
	// connection and is fault.Unavailable. m must not be changed afterwards.
	Send(m Message) error
	// SendLog queues f and waits while the queue is full. f.Data may be reused
	// when it has returned.
	SendLog(f LogFrame) error
	// Done is closed when the connection has ended.
	Done() <-chan struct{}
}
