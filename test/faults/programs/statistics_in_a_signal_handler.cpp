// A timer's handler asks for statistics, and for the picture of the chain, whatever the thread is doing just then.
#include "../support/each_resource.hpp"

#include <sys/time.h>

#include <csignal>
#include <cstdio>
#include <vector>

namespace {

const faults::subject* subject;
volatile std::sig_atomic_t ticks;

void tick(int) {
    (void)subject->stats();
    pmr_debug::write_chain(
        subject->resource, [](std::string_view, void*) noexcept {}, nullptr);
    ticks = ticks + 1;
}

}  // namespace

int main(int, char** argv) {
    const bool known = faults::with_resource(argv[1], nullptr, [&](const faults::subject& s) {
        subject = &s;
        std::signal(SIGPROF, tick);
        const itimerval often{{0, 500}, {0, 500}};
        ::setitimer(ITIMER_PROF, &often, nullptr);
        while (ticks < 200) {
            std::pmr::vector<std::pmr::vector<char>> v(&s.resource);
            for (int i = 0; i < 20; ++i) {
                v.emplace_back(50);
            }
            pmr_debug::limit_resource brief(&s.resource);  // the registry changes, too
        }
        const itimerval never{};
        ::setitimer(ITIMER_PROF, &never, nullptr);
    });
    return known ? 0 : 2;
}
