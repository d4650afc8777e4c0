// The program's own handlers for forks use resources, make and destroy some. The first argument says when they are
// registered: before the library's ("first"), or as most are ("late"); the second one names the resource. Other threads
// use it meanwhile, and child and parent go on using it.
#include "../support/each_resource.hpp"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

namespace {

const faults::subject* subject = nullptr;
std::optional<pmr_debug::tracking_resource> to_be_destroyed;

void use(std::pmr::memory_resource& r) {
    std::pmr::vector<int> v(&r);
    for (int i = 0; i < 500; ++i) {
        v.push_back(i);
    }
    std::pmr::vector<std::pmr::vector<char>> many(20, &r);
    for (std::size_t i = 0; i < many.size(); ++i) {
        many[i].resize(i * 300);
    }
}

void handler() {
    if (subject == nullptr) {
        return;
    }
    use(subject->resource);
    (void)subject->stats();
    pmr_debug::canary_resource own(&subject->resource);
    use(own);
    if (to_be_destroyed) {  // was there when the locks were taken
        use(*to_be_destroyed);
        to_be_destroyed.reset();
    }
}

void register_handlers() {
    pthread_atfork(handler, handler, handler);
}

void before_everything(int argc, char** argv, char**) {
    if (argc > 1 && std::strcmp(argv[1], "first") == 0) {
        register_handlers();
    }
}

// Before the constructors of the program and of what is linked into it.
[[gnu::section(".preinit_array"), gnu::used]] void (*const earliest)(int, char**, char**) = before_everything;

}  // namespace

int main(int, char** argv) {
    if (std::strcmp(argv[1], "late") == 0) {
        register_handlers();
    }
    int bad = 0;
    faults::with_resource(argv[2], nullptr, [&](const faults::subject& s) {
        subject = &s;
        std::atomic<bool> stop{false};
        std::thread other([&] {
            while (!stop) {
                use(s.resource);
            }
        });
        for (int i = 0; i < 3; ++i) {  // each takes 0.1 s; 32 runs make a hundred forks
            to_be_destroyed.emplace();
            const pid_t child = ::fork();
            if (child == 0) {
                ::alarm(10);
                use(s.resource);
                s.check();
                std::thread([&] { use(s.resource); }).join();
                ::_exit(0);
            }
            int status = 0;
            ::waitpid(child, &status, 0);
            bad += status != 0 ? 1 : 0;
            use(s.resource);
        }
        stop = true;
        other.join();
        s.check();
        subject = nullptr;
    });
    std::printf("%d children hung or died\n", bad);
    return bad != 0;
}
