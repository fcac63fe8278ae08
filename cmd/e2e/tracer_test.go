//go:build linux

package e2e

import (
	"errors"
	"runtime"
	"syscall"
	"unsafe"
)

// A tracer runs a program under ptrace and kills it right before the n-th system call of some kinds, counted over all its threads. strace can
// inject a signal too, but counts by thread, and a Go program's threads never do the same twice.
type tracer struct {
	calls  map[uint64]bool // the kinds, by number
	killAt int             // 0: never

	count  int // calls seen; may be read once done is closed
	killed bool
	done   chan struct{}
}

// Of ptrace(2) and wait(2); package syscall has not all of them.
const (
	wNoThread      = 0x20000000 // __WNOTHREAD: only what this very thread traces
	getSyscallInfo = 0x420e     // PTRACE_GET_SYSCALL_INFO
	exitKill       = 0x100000   // PTRACE_O_EXITKILL
	syscallStop    = syscall.SIGTRAP | 0x80
)

// syscallInfo is the front of struct ptrace_syscall_info.
type syscallInfo struct {
	op     uint8 // 1: the call is about to be made
	_      [3]byte
	arch   uint32
	ip, sp uint64
	nr     uint64
	_      [12]uint64
}

// run calls start, which must start the program with SysProcAttr's Ptrace and Setpgid, and traces it to its end.
func (r *tracer) run(start func() (pid int)) {
	runtime.LockOSThread() // the kernel knows the tracer by its thread
	defer runtime.UnlockOSThread()
	defer close(r.done)
	pid := start()
	if pid == 0 {
		return
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil || !ws.Stopped() {
		return
	}
	_ = syscall.PtraceSetOptions(pid, syscall.PTRACE_O_TRACECLONE|syscall.PTRACE_O_TRACESYSGOOD|exitKill)
	_ = syscall.PtraceSyscall(pid, 0)
	known := map[int]bool{pid: true}
	for {
		// By process group: this thread may have begun other programs before.
		tid, err := syscall.Wait4(-pid, &ws, syscall.WALL|wNoThread, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return // no thread is left
		}
		if ws.Stopped() {
			r.stopped(pid, tid, ws, known)
		}
	}
}

// stopped handles one stop of one thread and lets it go on.
func (r *tracer) stopped(pid, tid int, ws syscall.WaitStatus, known map[int]bool) {
	signal := 0
	switch s := ws.StopSignal(); {
	case s == syscallStop:
		if r.counts(tid) && r.count == r.killAt {
			r.killed = true
			_ = syscall.Kill(pid, syscall.SIGKILL) // the call is not made
			return
		}
	case s == syscall.SIGTRAP: // a thread was made
	case s == syscall.SIGSTOP && !known[tid]: // a new thread's first stop
	default:
		signal = int(s)
	}
	known[tid] = true
	_ = syscall.PtraceSyscall(tid, signal) // fails only for a thread that is dead
}

func (r *tracer) counts(tid int) bool {
	var info syscallInfo
	n, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 || n == 0 || info.op != 1 || !r.calls[info.nr] {
		return false
	}
	r.count++
	return true
}
