-- expire: reserved -> returned for every lease that has ended.
return { 'ok', expire() }
