package process

import "syscall"

// attributes: Pdeathsig acts when the thread that started the child ends, which for Go's threads is
// the end of the process (they end earlier only under a goroutine that dies locked to one, which
// nothing here does).
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
