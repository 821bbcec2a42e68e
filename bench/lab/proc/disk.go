package proc

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// full is how little a disk has free when it counts as full, in bytes: who needs more than that at
// once has failed already.
const full = 8 << 20

// Free is how many bytes whoever runs this may still write to the disk of dir.
func Free(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// CheckDisk is an error when the disk of dir has less than need bytes free.
func CheckDisk(dir string, need int64) error {
	free, err := Free(dir)
	if err != nil {
		return err
	}
	if free < need {
		return fmt.Errorf("the disk of %s has %d MiB free and a run needs %d MiB: make room, or move the project to another disk", dir, free>>20, need>>20)
	}
	return nil
}

// NameFullDisk says that it was a full disk, where that is why something failed: by the error
// itself, by what a process wrote before it ended, or, since a process that cannot write its log
// says nothing, by what is free on the disk of dir now. Other errors are returned as they are.
func NameFullDisk(err error, dir string, need int64) error {
	if err == nil {
		return nil
	}
	free, unknown := Free(dir)
	// C writes it with a capital.
	said := errors.Is(err, syscall.ENOSPC) || strings.Contains(strings.ToLower(err.Error()), syscall.ENOSPC.Error())
	if !said && (unknown != nil || free > full) {
		return err
	}
	return fmt.Errorf("a disk is full (that of %s has %d MiB free, a run needs %d MiB): make room and run it again: %w", dir, free>>20, need>>20, err)
}
