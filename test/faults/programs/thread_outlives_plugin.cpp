// A plug-in that has the library inside is unloaded while a thread that used it goes on. The host does not know of the
// library; the thread ends as any other.
#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <thread>

int main(int, char** argv) {
    std::atomic<int> step{0};
    int still_there = 0;
    for (int round = 0; round < 2; ++round) {
        step = 0;
        void* const plugin = ::dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (plugin == nullptr) {
            std::puts(::dlerror());
            return 2;
        }
        std::thread worker([&] {
            reinterpret_cast<void (*)()>(::dlsym(plugin, "work"))();
            step = 1;
            while (step != 2) {
                ::usleep(1000);
            }
        });
        while (step != 1) {
            ::usleep(1000);
        }
        ::dlclose(plugin);
        still_there += ::dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD) != nullptr ? 1 : 0;
        step = 2;
        worker.join();
        if (::fork() == 0) {
            ::_exit(0);
        }
        int status = 0;
        ::wait(&status);
    }
    // Whatever the plug-in did to signals is undone.
    struct sigaction now {};
    ::sigaction(SIGSEGV, nullptr, &now);
    const bool restored = (now.sa_flags & SA_SIGINFO) == 0 && now.sa_handler == SIG_DFL;
    std::printf("%s, faults are %s\n", still_there != 0 ? "still loaded" : "unloaded",
                restored || still_there != 0 ? "as before" : "the plug-in's");
    return restored || still_there != 0 ? 0 : 1;
}
