// A program that resolves faults of its own, as a collector's write barrier, with a handler installed before ours.
// Arguments: what it does about a fault that is none of its own.
//   default: puts the default action in place     again: puts itself back at each call, as handlers of old do
//   jump: leaves by siglongjmp                    endless: returns, and nothing has changed
//   skip: goes on behind the instruction          exit: ends the process
//   raise: puts the default action in place and sends the signal anew
// Then heap: writes to a freed block; or nobodys: to memory of nobody.

#include <pmr_debug/pmr_debug.hpp>

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t pages_of_region = 16;
char* region;
std::string_view way;
int calls;
int resolved;
sigjmp_buf back;

void install();

void barrier(int signal, siginfo_t* info, void* context) {
    ++calls;
    if (way == "again") {
        install();
    }
    char* const at = static_cast<char*>(info->si_addr);
    if (at >= region && at < region + pages_of_region * page) {
        ++resolved;
        ::mprotect(region + static_cast<std::size_t>(at - region) / page * page, page, PROT_READ | PROT_WRITE);
        return;
    }
    if (way == "jump") {
        siglongjmp(back, 1);
    } else if (way == "endless") {
        if (calls - resolved > 100) {
            ::_exit(4);
        }
#if defined(__x86_64__)
    } else if (way == "skip") {
        static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP] += 2;  // of movb to (%reg)
#endif
    } else if (way == "exit") {
        ::_exit(5);
    } else {
        ::signal(signal, SIG_DFL);
        if (way == "raise") {
            ::raise(signal);  // comes when this one has returned
        }
    }
    static_cast<void>(context);
}

void install() {
    struct sigaction a {};
    a.sa_sigaction = barrier;
    a.sa_flags = SA_SIGINFO;
    ::sigaction(SIGSEGV, &a, nullptr);
}

void use_the_barrier() {
    for (int round = 0; round < 20; ++round) {
        ::mprotect(region, pages_of_region * page, PROT_READ);
        for (std::size_t i = 0; i < pages_of_region; ++i) {
            static_cast<volatile char*>(region)[i * page] = 1;  // all of this is right
        }
    }
}

}  // namespace

int main(int, char** argv) {
    way = argv[1];
    const bool nobodys = std::string_view(argv[2]) == "nobodys";
    install();
    const pmr_debug::fault_handler faults;
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource heap(&pages, {.name = "heap"});
    region = static_cast<char*>(::mmap(nullptr, pages_of_region * page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    use_the_barrier();
    std::printf("%d resolved\n", resolved);
    std::fflush(stdout);
    static char* late;  // jumps leave it alone
    if (nobodys) {
        late = static_cast<char*>(::mmap(nullptr, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    } else {
        std::pmr::vector<char> v(100'000, &heap);
        late = v.data();
    }
    static int times;  // as well
    for (; times < 3; ++times) {
        if (sigsetjmp(back, 1) == 0) {
#if defined(__x86_64__)
            asm volatile("movb %%al, (%%rdx)" : : "d"(late) : "memory");
#else
            *static_cast<volatile char*>(late) = 1;
#endif
        }
    }
    use_the_barrier();
    std::printf("went on, %d resolved\n", resolved);
}
