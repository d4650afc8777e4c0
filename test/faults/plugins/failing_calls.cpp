// Loaded before a program (LD_PRELOAD): calls of the system fail, as older kernels and full machines have it. The
// variable FAULTS_FAIL holds their names; FAULTS_EVERY, that only each such call fails.
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>

namespace {

bool fails(const char* name) {
    const char* const names = std::getenv("FAULTS_FAIL");
    const char* const every = std::getenv("FAULTS_EVERY");
    static std::atomic<unsigned> calls{0};
    return names != nullptr && std::strstr(names, name) != nullptr &&
           (every == nullptr || ++calls % static_cast<unsigned>(std::atoi(every)) == 0);
}

constexpr int first_guard_advice = 102;

}  // namespace

extern "C" {

int madvise(void* p, std::size_t bytes, int advice) noexcept {
    if ((advice >= first_guard_advice && fails("guard")) || fails("madvise")) {
        errno = EINVAL;
        return -1;
    }
    return static_cast<int>(::syscall(SYS_madvise, p, bytes, advice));
}

void* mremap(void* p, std::size_t before, std::size_t after, int flags, ...) noexcept {
    va_list more;
    va_start(more, flags);
    void* const to = va_arg(more, void*);
    va_end(more);
    if (fails("mremap")) {
        errno = ENOSYS;
        return MAP_FAILED;
    }
    return reinterpret_cast<void*>(::syscall(SYS_mremap, p, before, after, flags, to));
}

int mprotect(void* p, std::size_t bytes, int protection) noexcept {
    if (fails("mprotect")) {
        errno = ENOMEM;
        return -1;
    }
    return static_cast<int>(::syscall(SYS_mprotect, p, bytes, protection));
}

int munmap(void* p, std::size_t bytes) noexcept {
    if (fails("munmap")) {
        errno = ENOMEM;
        return -1;
    }
    return static_cast<int>(::syscall(SYS_munmap, p, bytes));
}

void* mmap(void* p, std::size_t bytes, int protection, int flags, int descriptor, off_t offset) noexcept {
    if (fails("mmap")) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return reinterpret_cast<void*>(::syscall(SYS_mmap, p, bytes, protection, flags, descriptor, offset));
}

ssize_t process_madvise(int pid, const iovec* ranges, std::size_t count, int advice, unsigned flags) noexcept {
    if ((advice >= first_guard_advice && fails("guard")) || fails("madvise")) {
        errno = EPERM;
        return -1;
    }
    return ::syscall(SYS_process_madvise, pid, ranges, count, advice, flags);
}
}
