// A handler that was installed after ours writes a line and passes the signal on to the one it found, as is custom.
// Arguments: what happens. fault: an access to a freed block; nobodys: to memory of nobody; resolve: it resolves a
// fault itself, passes nothing on, then there is a real one; loop: ours was taken away and installed again meanwhile,
// so that each of the two takes the other one for the handler of before; raise: it puts the action that it found back
// and sends the signal anew, for a fault; sent: the same for a signal that somebody sent, after a fault it resolved.

#include <pmr_debug/pmr_debug.hpp>

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <optional>
#include <string_view>

namespace {

struct sigaction former;
char* volatile resolvable;
volatile bool raises;

void mine(int signal, siginfo_t* info, void* context) {
    if (info->si_addr == resolvable && resolvable != nullptr) {
        ::mprotect(resolvable, 4096, PROT_READ | PROT_WRITE);
        return;
    }
    static_cast<void>(!::write(1, "passing on\n", 11));
    if (raises) {
        ::sigaction(signal, &former, nullptr);
        ::raise(signal);
    } else if ((former.sa_flags & SA_SIGINFO) != 0) {
        former.sa_sigaction(signal, info, context);
    } else if (former.sa_handler == SIG_DFL) {
        ::signal(signal, SIG_DFL);
    }
}

}  // namespace

int main(int, char** argv) {
    const std::string_view way = argv[1];
    std::optional<pmr_debug::fault_handler> faults;
    faults.emplace();
    struct sigaction a {};
    a.sa_sigaction = mine;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigaction(SIGSEGV, &a, &former);
    if (way == "loop") {
        faults.reset();
        faults.emplace();
    }
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource heap(&pages, {.name = "heap"});
    char* p = static_cast<char*>(heap.allocate(100'000));
    heap.deallocate(p, 100'000);
    raises = way == "raise" || way == "sent";
    if (way == "resolve" || way == "sent") {
        resolvable = static_cast<char*>(::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        *static_cast<volatile char*>(resolvable) = 1;
        static_cast<void>(!::write(1, "resolved\n", 9));
    } else if (way == "nobodys" || way == "loop") {
        p = static_cast<char*>(::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    }
    if (way == "sent") {
        ::mprotect(resolvable, 4096, PROT_NONE);
        ::raise(SIGSEGV);
    }
    *static_cast<volatile char*>(p + 40) = 1;
}
