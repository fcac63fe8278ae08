// Package scsi speaks the command sets of tape drives (SSC) and media changers (SMC): it builds command descriptor blocks and reads
// sense data, inquiry and vital product data, log pages, medium auxiliary memory, element status, positions and key management pages.
//
// It owns no device and no state, so there is nothing to promise on a crash: a Transport carries commands, and who uses it decides what
// an answer means for the data. Everything that comes from a device is foreign input: lengths are bounded before anything is
// allocated and a page that contradicts itself is Corrupt, never a panic.
//
// It imports the ground floor only.
package scsi

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// A Transport carries commands to one logical unit. Exec is safe for concurrent use; a tape drive's user still sends one command at a
// time, because commands depend on the position that the one before has left.
type Transport interface {
	// Exec executes one command and returns what the device answered. An error means that the answer is not known: the command may
	// have been executed, may not have been, and may still be. Never repeat a write after one without asking for the position.
	Exec(ctx context.Context, c Command) (Result, error)
	Close() error
}

// A Command is one command with its buffers. At most one of Out and In is used.
type Command struct {
	CDB     []byte
	Out     []byte        // bytes for the device; only read, and only during Exec
	In      []byte        // room for bytes from the device
	Timeout time.Duration // zero: as Timeout says for the CDB
}

// Limit returns how long to wait for the answer.
func (c *Command) Limit() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return Timeout(c.CDB)
}

// A Result is a device's answer.
type Result struct {
	Status Status
	Sense  []byte // as it came; only with CheckCondition
	// In is how many bytes of Command.In were filled, as the transport counted. With CheckCondition it proves nothing: some
	// targets count wrongly and send what an earlier command has left in their memory. Sense tells the length of a short block.
	In int
}

// A Status is the byte that ends a command.
type Status uint8

const (
	Good                Status = 0x00
	CheckCondition      Status = 0x02
	BusyStatus          Status = 0x08
	ReservationConflict Status = 0x18
	TaskSetFull         Status = 0x28
	TaskAborted         Status = 0x40
)

// String returns the status's name.
func (s Status) String() string {
	switch s {
	case Good:
		return "good"
	case CheckCondition:
		return "check condition"
	case BusyStatus:
		return "busy"
	case ReservationConflict:
		return "reservation conflict"
	case TaskSetFull:
		return "task set full"
	case TaskAborted:
		return "task aborted"
	}
	return fmt.Sprintf("status %02xh", uint8(s))
}

var be = binary.BigEndian

func corrupt(op, format string, args ...any) error {
	return holdfast.Errorf(holdfast.Corrupt, op, format, args...)
}

// Do executes a command and turns everything but Good into an error: an *Error for what the device said. It returns the bytes that came in.
func Do(ctx context.Context, t Transport, c Command) ([]byte, error) {
	r, err := t.Exec(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := r.Err(c.CDB); err != nil {
		return nil, err
	}
	return c.In[:min(max(r.In, 0), len(c.In))], nil
}

// An Error is a command that a device did not end with Good. It has a Kind through Unwrap, so holdfast.KindOf works on it.
type Error struct {
	Op     string // the command's name
	Status Status
	Sense  Sense // zero if there was none
}

// Err returns nil for Good and an *Error for everything else.
func (r *Result) Err(cdb []byte) error {
	if r.Status == Good {
		return nil
	}
	e := &Error{Op: Name(cdb), Status: r.Status}
	if r.Status == CheckCondition {
		e.Sense, _ = ParseSense(r.Sense) // unreadable sense is a zero one, which Error says
	}
	return e
}

// Error says the command, and what the device said in its numbers and in words.
func (e *Error) Error() string {
	if e.Status != CheckCondition {
		return fmt.Sprintf("%s: %v", e.Op, e.Status)
	}
	return fmt.Sprintf("%s: %v", e.Op, e.Sense)
}

// Unwrap returns the error's Kind.
func (e *Error) Unwrap() error { return e.Kind() }

// Kind returns what a caller can do about the error.
func (e *Error) Kind() holdfast.Kind {
	switch e.Status {
	case BusyStatus, ReservationConflict, TaskSetFull:
		return holdfast.Busy
	case TaskAborted:
		return holdfast.Transient
	case CheckCondition:
		return e.Sense.Kind()
	}
	return holdfast.Internal
}
