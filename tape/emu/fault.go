package emu

import "github.com/holdfast-backup/holdfast/tape/scsi"

// An Action is what a fault does.
type Action int

const (
	Answer      Action = iota // do not execute, answer with the sense
	LoseCommand               // do not execute, and let the connection fail
	LoseReply                 // execute, and let the connection fail
	CutBefore                 // cut the power instead of executing, and let the connection fail
	CutAfter                  // execute, cut the power, and let the connection fail
	Defer                     // execute; report the sense as a deferred error with the next command, and lose what was buffered
	Conflict                  // do not execute, answer with a reservation conflict
	Rot                       // a read: execute, with one bit of the data changed
)

// AnyOp stands for every command in a Fault.
const AnyOp = -1

// A Fault is one thing that is to go wrong.
type Fault struct {
	Unit  Unit
	Op    int // operation code, or AnyOp
	Skip  int // so many such commands go well before
	Times int // how often; 0: once
	Do    Action
	Sense scsi.Sense
}

// Inject adds a fault to the script.
func (l *Library) Inject(f Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.Times == 0 {
		f.Times = 1
	}
	l.faults = append(l.faults, &f)
}

// Peace removes the faults that have not come yet.
func (l *Library) Peace() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = nil
}

// fault returns the fault that befalls a command, or nil.
func (l *Library) fault(u Unit, op byte) *Fault {
	for i, f := range l.faults {
		if f.Unit != u || f.Op != AnyOp && f.Op != int(op) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if f.Times--; f.Times == 0 {
			l.faults = append(l.faults[:i:i], l.faults[i+1:]...)
		}
		return f
	}
	return nil
}
