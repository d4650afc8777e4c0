// The program and its plug-in have a copy of the library each, and a fault handler of each. Arguments: the plug-in;
// what happens.
//   barrier, nobodys, freed: the plug-in's is installed first, and removed before the plug-in is unloaded
//   own: the plug-in has installed one of its own, and leaves it behind
//   plugin_first, program_first: both stay, in this order
// Then an access: barrier: that a handler of the program's resolves, which is there before the others; nobodys: to
// memory of nobody; freed: to a freed block. For the last two ways it is the third argument.

#include <pmr_debug/pmr_debug.hpp>

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>

#include <cstdio>
#include <optional>
#include <string_view>

namespace {

constexpr std::size_t page = 4096;
char* protected_page;

void barrier(int /*signal*/, siginfo_t* /*info*/, void* /*context*/) {
    ::mprotect(protected_page, page, PROT_READ | PROT_WRITE);
}

void install_barrier() {
    struct sigaction a {};
    a.sa_sigaction = barrier;
    a.sa_flags = SA_SIGINFO;
    ::sigaction(SIGSEGV, &a, nullptr);
}

}  // namespace

int main(int, char** argv) {
    const std::string_view way = argv[2];
    const bool stays = way == "plugin_first" || way == "program_first";
    const std::string_view access = stays ? argv[3] : argv[2];
    void* const plugin = ::dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (plugin == nullptr) {
        std::puts(::dlerror());
        return 3;
    }
    const auto call = [plugin](const char* name) { reinterpret_cast<void (*)()>(::dlsym(plugin, name))(); };
    protected_page = static_cast<char*>(::mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (access == "barrier") {
        install_barrier();
    }
    std::optional<pmr_debug::fault_handler> faults;
    if (way == "program_first") {
        faults.emplace();
    }
    call(way == "own" ? "start_own" : "start");
    if (!faults) {
        faults.emplace();
    }
    if (!stays) {
        if (way != "own") {
            call("stop");
        }
        ::dlclose(plugin);
        if (::dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD) != nullptr) {
            std::puts("still loaded");
            return 3;
        }
    }
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource heap(&pages, {.name = "heap"});
    char* p = protected_page;
    if (access == "freed") {
        p = static_cast<char*>(heap.allocate(100'000));
        heap.deallocate(p, 100'000);
    }
    *static_cast<volatile char*>(p) = 1;
    std::puts("went on");
}
