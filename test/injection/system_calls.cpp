#include "system_calls.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <utility>

// NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp): the linker's.
extern "C" {
void* __real_mmap(void*, std::size_t, int, int, int, off_t);
int __real_munmap(void*, std::size_t);
int __real_mprotect(void*, std::size_t, int);
int __real_madvise(void*, std::size_t, int);
ssize_t __real_process_madvise(int, const iovec*, std::size_t, int, unsigned);
void* __real_mremap(void*, std::size_t, std::size_t, int, void*);
int __real_mincore(void*, std::size_t, unsigned char*);
int __real_pthread_key_create(pthread_key_t*, void (*)(void*));
int __real_pthread_setspecific(pthread_key_t, const void*);
int __real_sigaltstack(const stack_t*, stack_t*);
int __real_sigaction(int, const struct sigaction*, struct sigaction*);
long __real_syscall(long, ...);
}

namespace injection {

namespace {

thread_local bool counting = false;
plan current;
std::atomic<std::uint64_t> calls_seen{0};
std::atomic<std::uint64_t> faults_made{0};
std::atomic<std::uint64_t> faults_ever{0};

struct books {
    std::mutex lock;
    ranges mapped;
    ranges refused;
};
books& the_books() {
    static auto* const b = new books;  // never destroyed: calls come late
    return *b;
}

void cut(ranges& r, std::uintptr_t from, std::uintptr_t to) {
    auto at = r.upper_bound(from);
    if (at != r.begin()) {
        --at;
    }
    while (at != r.end() && at->first < to) {
        const auto [start, end] = *at;
        if (end <= from) {
            ++at;
            continue;
        }
        at = r.erase(at);
        if (start < from) {
            r.emplace(start, from);
        }
        if (end > to) {
            r.emplace(to, end);
        }
    }
}

void add(ranges& r, std::uintptr_t from, std::uintptr_t to) {
    cut(r, from, to);
    auto at = r.emplace(from, to).first;
    if (at != r.begin()) {
        if (auto before = std::prev(at); before->second == from) {
            before->second = to;
            r.erase(at);
            at = before;
        }
    }
    if (auto after = std::next(at); after != r.end() && after->first == to) {
        at->second = after->second;
        r.erase(after);
    }
}

/// True if this call is to fail; errno is set then.
bool fails(call which) noexcept {
    if (!counting || (current.calls & only(which)) == 0) {
        return false;
    }
    const std::uint64_t number = calls_seen.fetch_add(1) + 1;
    if (current.first == 0 || number < current.first || number > current.last) {
        return false;
    }
    faults_made.fetch_add(1);
    faults_ever.fetch_add(1);
    errno = current.error;
    return true;
}

std::uintptr_t address(const void* p) noexcept {
    return reinterpret_cast<std::uintptr_t>(p);
}

std::uintptr_t end_of(const void* p, std::size_t bytes) noexcept {
    return address(p) + ((bytes + 4095) & ~std::size_t{4095});
}

}  // namespace

const char* name_of(call which) noexcept {
    constexpr const char* names[] = {"mmap",       "munmap",      "mprotect",  "madvise", "mremap",
                                     "thread key", "sigaltstack", "sigaction", "open",    "mincore"};
    return names[static_cast<unsigned>(which)];
}

faults::faults(const plan& p) noexcept {
    current = p;
    calls_seen = 0;
    faults_made = 0;
    counting = true;
}
faults::~faults() {
    counting = false;
}
void faults::stop() noexcept {
    current.first = 0;
}
std::uint64_t faults::seen() noexcept {
    return calls_seen;
}
std::uint64_t faults::injected() noexcept {
    return faults_made;
}
std::uint64_t total_injected() noexcept {
    return faults_ever;
}

ranges mapped() {
    const std::scoped_lock hold(the_books().lock);
    return the_books().mapped;
}

ranges take_refused() {
    const std::scoped_lock hold(the_books().lock);
    return std::exchange(the_books().refused, {});
}

void unmap(const ranges& what) {
    const std::scoped_lock hold(the_books().lock);
    for (const auto& [start, end] : what) {
        __real_munmap(reinterpret_cast<void*>(start), end - start);
        cut(the_books().mapped, start, end);
    }
}

ranges without(ranges from, const ranges& what) {
    for (const auto& [start, end] : what) {
        cut(from, start, end);
    }
    return from;
}

std::size_t bytes_of(const ranges& r) noexcept {
    std::size_t sum = 0;
    for (const auto& [start, end] : r) {
        sum += end - start;
    }
    return sum;
}

std::string to_string(const ranges& r) {
    std::string text;
    for (const auto& [start, end] : r) {
        char line[80];
        std::snprintf(line, sizeof line, "%lx-%lx %zu\n", static_cast<unsigned long>(start),
                      static_cast<unsigned long>(end), static_cast<std::size_t>(end - start));
        text += line;
    }
    return text;
}

}  // namespace injection

using namespace injection;

extern "C" {

void* __wrap_mmap(void* p, std::size_t bytes, int protection, int flags, int file, off_t offset) {
    if (fails(call::map)) {
        return MAP_FAILED;
    }
    void* const got = __real_mmap(p, bytes, protection, flags, file, offset);
    if (got != MAP_FAILED) {
        const int error = errno;
        const std::scoped_lock hold(the_books().lock);
        add(the_books().mapped, address(got), end_of(got, bytes));
        errno = error;
    }
    return got;
}

int __wrap_munmap(void* p, std::size_t bytes) {
    const bool refused = fails(call::unmap);
    const int error = errno;
    const int result = refused ? -1 : __real_munmap(p, bytes);
    const int after = refused ? error : errno;
    {
        const std::scoped_lock hold(the_books().lock);
        if (result == 0) {
            cut(the_books().mapped, address(p), end_of(p, bytes));
        } else {
            add(the_books().refused, address(p), end_of(p, bytes));
        }
    }
    errno = after;
    return result;
}

int __wrap_mprotect(void* p, std::size_t bytes, int protection) {
    return fails(call::protect) ? -1 : __real_mprotect(p, bytes, protection);
}

int __wrap_madvise(void* p, std::size_t bytes, int advice) {
    return fails(call::advise) ? -1 : __real_madvise(p, bytes, advice);
}

ssize_t __wrap_process_madvise(int process, const iovec* ranges, std::size_t count, int advice, unsigned flags) {
    if (fails(call::advise)) {
        return -1;
    }
    return __real_process_madvise(process, ranges, count, advice, flags);
}

void* __wrap_mremap(void* from, std::size_t bytes, std::size_t size, int flags, ...) {
    std::va_list rest;
    va_start(rest, flags);
    void* const to = va_arg(rest, void*);
    va_end(rest);
    if (fails(call::remap)) {
        // The unkind way: the kernel may have unmapped the target before it found that it cannot go on.
        if ((flags & MREMAP_FIXED) != 0 && current.error == ENOMEM) {
            __real_munmap(to, bytes);
            errno = ENOMEM;
        }
        return MAP_FAILED;
    }
    return __real_mremap(from, bytes, size, flags, to);
}

int __wrap_mincore(void* p, std::size_t bytes, unsigned char* out) {
    return fails(call::look) ? -1 : __real_mincore(p, bytes, out);
}

int __wrap_pthread_key_create(pthread_key_t* key, void (*at_exit)(void*)) {
    return fails(call::key) ? EAGAIN : __real_pthread_key_create(key, at_exit);
}

int __wrap_pthread_setspecific(pthread_key_t key, const void* value) {
    return fails(call::key) ? ENOMEM : __real_pthread_setspecific(key, value);
}

int __wrap_sigaltstack(const stack_t* stack, stack_t* before) {
    return fails(call::stack) ? -1 : __real_sigaltstack(stack, before);
}

int __wrap_sigaction(int signal, const struct sigaction* now, struct sigaction* before) {
    return fails(call::action) ? -1 : __real_sigaction(signal, now, before);
}

// The library opens files by this.
long __wrap_syscall(long number, ...) {
    long a[6];
    std::va_list rest;
    va_start(rest, number);
    for (long& argument : a) {
        argument = va_arg(rest, long);  // those that are not there are not looked at
    }
    va_end(rest);
    return number == SYS_openat && fails(call::open) ? -1 : __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

}  // extern "C"
// NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp)
